"""Reads and writes `config.yaml`, the config of a run as it was trained."""

import re
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.config import ConfigError, RunConfig, digest, first_line, run_from_dict
from sae_sweep.store.atomic import write_text
from sae_sweep.store.paths import RunFolder
from sae_sweep.store.records import read_text, unreadable

_FIRST_LINE = re.compile(r"# checksum of the lines below: ([0-9a-f]+)\n")
_LAST_LINE = "# end of the config\n"
"""Whatever piece of the file is lost, one of these lines is left to say so; version 0.1.0 wrote neither."""
_MOST_BYTES = 2**20
_ROOT = 2
"""Position of the first event of the content, after the starts of the stream and of the document."""
_DEEPEST = 20
_REMEDY = "remove it and launch the sweep again"


def write_config(folder: RunFolder, config: RunConfig) -> None:
    """Write the config as YAML, with a checksum in its first line."""
    text = OmegaConf.to_yaml(OmegaConf.create(config.as_dict())) + _LAST_LINE
    write_text(folder.config, f"# checksum of the lines below: {digest(text)}\n{text}")


def read_config(folder: RunFolder) -> RunConfig:
    """Read the config of a run. Raises SaeSweepError, naming the file and the remedy, if it is damaged."""
    text = read_text(folder.config, _REMEDY, _MOST_BYTES)
    try:
        return run_from_dict(_mapping(_verified(text)))
    except ConfigError as error:
        raise unreadable(folder.config, error, _REMEDY) from error
    except (ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise unreadable(folder.config, first_line(error), _REMEDY) from error


def _verified(text: str) -> str:
    """The lines below the checksum, if they fit it."""
    if not text.startswith("#") and not text.rstrip().endswith(_LAST_LINE.rstrip()):
        return text
    first = _FIRST_LINE.match(text)
    if first is None or first[1] != digest(text[first.end() :]):
        raise ValueError("its content does not fit its checksum")
    return text[first.end() :]


def _mapping(text: str) -> Any:
    """The YAML mapping, as OmegaConf reads it: 1e-05 is a number, and no key appears twice."""
    _refuse_more_than_values(text)
    return OmegaConf.to_container(OmegaConf.create(text))


def _refuse_more_than_values(text: str) -> None:
    """Refuse tags, deep nesting, and aliases: a few bytes of them can stand for gigabytes."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if number == _ROOT and not isinstance(event, yaml.MappingStartEvent):
            raise ValueError("it holds no mapping")
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError("it holds an alias or a tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
