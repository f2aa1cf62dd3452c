"""Finds all problems of a command line at once; Hydra would stop at the first."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sae_sweep.cli.schema import DATASET_SCHEMAS, Schema, choices, open_schema
from sae_sweep.config import ARCHITECTURES

HYDRA_KEYS = ("hydra",)


def diagnose(overrides: Iterable[str]) -> list[str]:
    """Problems of each override on its own; Hydra still checks how they combine.

    Args:
        overrides: as typed, for example `["seed=42,49", "dataset=owt"]`.
    """
    parser = OverridesParser.create()
    problems: list[str] = []
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except HydraException:
            problems.append(f"{text}: not of the form key=value (see --help)")
            continue
        problems += _check(override, text)
    return problems


def _check(override: Override, text: str) -> list[str]:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] in HYDRA_KEYS:
        return []
    if override.is_delete():
        return [f"{text}: no key can be deleted; give it a value, or null"]
    if override.is_add() and not choices(key) and not _schemas(key):
        return [f"{text}: keys cannot be added; {_unknown(key)}"]
    return check(key, _values(override))


def check(key: str, values: Sequence[Any]) -> list[str]:
    """Problems of the values of a key or group, from the command line or a grid."""
    if choices(key):
        return _check_choices(key, values)
    if not _schemas(key):
        return [_unknown(key)]
    return _check_values(key, values)


def _check_choices(group: str, values: Sequence[Any]) -> list[str]:
    options = choices(group)
    wrong = [value for value in values if value is not None and str(value) not in options]
    return [
        f"{group}={value}: not one of {', '.join(options)}{_hint(str(value), options)}" for value in wrong
    ]


def _check_values(key: str, values: Sequence[Any]) -> list[str]:
    problems = []
    for value in values:
        errors = [_type_problem(schema, path, value) for schema, path in _schemas(key)]
        if all(errors):
            problems.append(f"{key}={value}: {errors[0]}")
    return problems


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        if override.value_type in (
            ValueType.CHOICE_SWEEP,
            ValueType.SIMPLE_CHOICE_SWEEP,
            ValueType.RANGE_SWEEP,
        ):
            return list(override.sweep_iterator())
        return []
    return [override.value()]


def _schemas(key: str) -> list[tuple[type, str]]:
    """Dataclasses that have `key`, each with the key's path inside it."""
    head, _, rest = key.partition(".")
    variants: Sequence[type] = {
        "architecture": tuple(ARCHITECTURES.values()),
        "dataset": tuple(DATASET_SCHEMAS.values()),
    }.get(head, ())
    if variants and rest:
        return [(cls, rest) for cls in variants if rest in _keys(cls)]
    inside_a_dict = key.rpartition(".")[0] in _keys(Schema, of=dict)
    return [(Schema, key)] if inside_a_dict or key in _keys(Schema) else []


def _keys(cls: type, of: type | None = None) -> list[str]:
    """Dotted names of all fields, nested ones included; with `of`, only fields with that default factory."""
    found = []
    for field in dataclasses.fields(cls):
        if of in (None, field.default_factory):
            found.append(field.name)
        if dataclasses.is_dataclass(field.default_factory):
            found += [f"{field.name}.{inner}" for inner in _keys(field.default_factory, of)]
    return found


@functools.cache
def _trial_config(schema: type) -> DictConfig:
    """Cached config for trying values; building one takes as long as a hundred tries."""
    return open_schema(schema)


def _type_problem(schema: type, key: str, value: Any) -> str | None:
    """Why `value` does not fit the type of `key`, or None."""
    if isinstance(value, str) and "${" in value:
        return None  # an interpolation: known only when composed
    try:
        OmegaConf.update(_trial_config(schema), key, value)
    except Exception as error:  # OmegaConf's errors, and those from values such as Hydra's quoted strings
        return str(error).splitlines()[0]
    return None


def _unknown(key: str) -> str:
    known = _keys(Schema)
    for head, variants in (("architecture", ARCHITECTURES.values()), ("dataset", DATASET_SCHEMAS.values())):
        known += [f"{head}.{inner}" for cls in variants for inner in _keys(cls)]
    hint = _hint(key, known)
    return f"unknown key {key}{hint}" if hint else f"unknown key {key}: see --help for all keys"


def _hint(word: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(dict.fromkeys(options)), n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
