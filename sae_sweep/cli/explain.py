"""Explains errors of Hydra, OmegaConf and YAML in one line that names the config file."""

import dataclasses
import re
import traceback

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sae_sweep.cli.diagnose import unknown_key
from sae_sweep.cli.schema import Schema
from sae_sweep.config import first_line

_BY_DEFAULTS = "{group} is a group of keys: choose with `defaults: [override /{group}: CHOICE]`"


def explained(error: BaseException) -> str:
    """What was wrong, and in which file, as far as the error says so."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.name}: {error.reason}"
    if isinstance(error, UnicodeDecodeError):
        return f"{_config_file(error)} is not text in UTF-8: {error}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(str(error.full_key))
    cause = error.__cause__ or error.__context__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        return _of_a_file(error, cause)
    if isinstance(error, MissingConfigException):
        found, _, options = str(error).split("Config search path:")[0].partition("Available options in ")
        group, _, choices = options.partition(":")
        listed = f"; {group} has {', '.join(choices.split())}" if options else ""
        return " ".join(found.split()) + listed
    if twice := re.match(
        r"Multiple values for (\S+)\. To override a value use 'override \S+ (.+)'", str(error)
    ):
        group, choice = twice.groups()
        return f"{group} is chosen twice: write {group}={choice} without +, or `override /{group}: {choice}`"
    if there := re.search(r"An item is already at '(.+)'", str(error)):
        return f"+{there[1]}: there is a key {there[1]} already: leave out the +"
    if "No match in the defaults list" in str(error):
        return f"{first_line(error)} Groups of the package begin with /, as in `override /model: gpt2-pico`"
    return first_line(error)


def _of_a_file(error: BaseException, cause: OmegaConfBaseException) -> str:
    """An error of a value in a config file, which Hydra names in its message only."""
    where = re.match(r"In '(.+?)'", str(error))
    file = f"{where[1]}.yaml: " if where else ""
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return f"{file}{unknown_key(str(cause.full_key))}"
    why = first_line(cause)
    merged = re.match(r"Merge error: \w+ is not a subclass of (\w+)", why)
    if merged:
        return f"{file}{_BY_DEFAULTS.format(group=_group_of(merged[1]))}"
    return f"{file}{cause.full_key}: {why}"


def _group_of(cls: str) -> str:
    """The key whose value is an object of a class."""
    names = {getattr(key.default_factory, "__name__", ""): key.name for key in dataclasses.fields(Schema)}
    return names.get(cls, cls)


def _config_file(error: BaseException) -> str:
    """The file that Hydra was reading, which is only in the variables of the function that read it."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [str(names["full_path"]) for names in frames if "full_path" in names]
    return files[-1] if files else "a config file"
