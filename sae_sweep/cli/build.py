"""Builds the configs of runs and commands from composed keys."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.cli.schema import GridKeys, holds, of_text, type_hints
from sae_sweep.config import SPARSITY_KEYS, CommandConfig, ConfigError, RunConfig, first_line
from sae_sweep.config.checks import numeric_fields, shown, whole
from sae_sweep.tasks import command_class


def to_configs(values: DictConfig) -> tuple[RunConfig, CommandConfig]:
    """Convert a composed config into the run's config and the command's.

    Raises:
        ConfigError: all problems of both.
    """
    keys, problems = command_config(values)
    try:
        run = run_config(values, keys)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems or keys is None:
        raise ConfigError(problems)
    return run, keys


def command_config(values: DictConfig) -> tuple[CommandConfig | None, list[str]]:
    """The command's config, or its problems."""
    cls = command_class()
    try:
        return cls(**_parts(values, cls)), []
    except ConfigError as error:
        return None, list(error.problems)


def run_config(values: DictConfig, command: CommandConfig | None) -> RunConfig:
    """The run's config, with the command's changes if a command is given.

    Raises:
        ConfigError: all problems of its keys.
    """
    _refuse_two_values(values)
    changes = command.changes(values.dataset.name) if command else {}
    return RunConfig(**{**_parts(values, RunConfig), **changes})


def unchecked_run(values: DictConfig) -> RunConfig:
    """The run's config, whether or not its values fit together: to compare with, not to train.

    Raises:
        ConfigError: for values of another type, or unknown ones.
    """
    run = object.__new__(RunConfig)
    for key, value in _parts(values, RunConfig).items():
        object.__setattr__(run, key, value)
    return run


def _parts(values: DictConfig, cls: type) -> dict[str, Any]:
    """Values of the fields of a config class.

    Raises:
        ConfigError: all that are of another type.
    """
    try:
        nodes = {key.name: values[key.name] for key in dataclasses.fields(cls)}  # resolves interpolations
        problems = [problem for key, node in nodes.items() for problem in _settle(values, cls, key)]
        if problems:
            raise ConfigError(problems)
        return {
            key: OmegaConf.to_object(values[key]) if OmegaConf.is_config(node) else values[key]
            for key, node in nodes.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or cls.__name__}: {first_line(error)}"]) from error


def _settle(parent: DictConfig, cls: type, key: str, path: str = "") -> Iterator[str]:
    """Turn `1e8` into a whole number where one is needed; yield a line for each value of another type."""
    path = f"{path}.{key}" if path else key
    value, hint = parent[key], type_hints(cls)[key]
    if isinstance(value, DictConfig) and dataclasses.is_dataclass(inner := OmegaConf.get_type(value)):
        for name in value:
            yield from _settle(value, typing.cast(type, inner), str(name), path)
    elif problem := text_problem(value, hint):
        yield f"{path}={shown(value)}: {problem}"
    elif holds(hint, int):
        parent[key] = whole(value)
        if problem := numeric_fields(cls)[key].type_problem(whole(value)):
            yield f"{path}={shown(value)}: {problem}"


def text_problem(value: Any, hint: Any) -> str | None:
    """Why a value of a key that holds text or texts is wrong; None if it is right, or for other keys."""
    if holds(hint, str):
        right = isinstance(value, str) or (value is None and hint is not str)
        return None if right else "must be text" if value is None else "must be text: put it in quotes"
    texts = list(value.values()) if isinstance(value, Mapping) else value
    if not (of_text(hint) or hint == dict[str, str]) or not isinstance(texts, Sequence):
        return None
    return None if all(isinstance(text, str) for text in texts) else "must hold text: put it in quotes"


def _refuse_two_values(values: DictConfig) -> None:
    """Refuse a config that sets `k` and `architecture.k` to different values."""
    problems = [
        f"{key}={values[key]}, but architecture.{key}={values.architecture[key]}: they are one key, give one"
        for key in SPARSITY_KEYS
        if key in values.architecture
        and values[key] not in (values.architecture[key], getattr(GridKeys, key))
    ]
    if problems:
        raise ConfigError(problems)
