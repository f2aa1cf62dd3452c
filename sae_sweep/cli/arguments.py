"""Parses the words of a command line: Hydra's flags, wherever they stand, and the overrides."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from sae_sweep import __version__
from sae_sweep.cli.words import key_of
from sae_sweep.config import ConfigError


class Arguments(argparse.Namespace):
    """The flags that Hydra knows, and `overrides`."""

    overrides: list[str]
    config_path: str | None
    config_name: str | None
    config_dir: str | None
    cfg: str | None
    info: str | None
    shell_completion: bool
    help: bool
    hydra_help: bool
    resolve: bool

    @property
    def is_sweep(self) -> bool:
        """Whether the command is a sweep: it asks Hydra neither to show something nor for another mode."""
        shows = self.cfg or self.info or self.shell_completion or self.help or self.hydra_help or self.resolve
        return not shows and not any(key_of(word) == "hydra.mode" for word in self.overrides)


def read_arguments(words: Sequence[str]) -> tuple[Arguments, argparse.ArgumentParser]:
    """Split words into flags and overrides; flags may stand before, between and after the overrides.

    Raises:
        ConfigError: for an unknown flag, or one without its value.
        SystemExit: for `--version`.
    """
    parser = get_args_parser()
    version: Any = parser._option_string_actions["--version"]
    version.version = f"sae_sweep {__version__}, Hydra {hydra.__version__}"
    parser.error = _refuse  # argparse would print its usage, too
    arguments = parser.parse_intermixed_args(list(words), Arguments())
    if arguments.experimental_rerun is not None:
        raise ConfigError(["--experimental-rerun is not supported: type the command again"])
    if arguments.config_path and "://" not in arguments.config_path:
        arguments.config_path = str(Path(arguments.config_path).absolute())
    return arguments, parser


def _refuse(message: str, *_: Any) -> NoReturn:
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        raise ConfigError([f"{message} (see --hydra-help)"])
    raise ConfigError(
        f"{word}: write {word.lstrip('-')}, without dashes"
        if "=" in word
        else f"{word}: no such flag (see --hydra-help); keys are written as KEY=VALUE"
        for word in unknown.split()
    )
