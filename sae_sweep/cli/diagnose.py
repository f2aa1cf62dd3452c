"""Finds all problems of a command line at once; Hydra would stop at the first."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig, OmegaConf

from sae_sweep.cli.build import text_problem
from sae_sweep.cli.grids import MOST_RUNS
from sae_sweep.cli.groups import Groups, missing_folders
from sae_sweep.cli.schema import DATASET_SCHEMAS, Schema, holds, of_text, open_schema, type_of
from sae_sweep.cli.words import as_typed, how_to_quote, key_of, parsed, values_of
from sae_sweep.config import ARCHITECTURES, first_line
from sae_sweep.config.checks import NumericField, numeric_fields, shown, whole
from sae_sweep.tasks import TASKS

HYDRA_KEYS = ("hydra",)
_ELSEWHERE = {
    **dict.fromkeys(("init.from", "init.path", "from_pretrained"), "init.sae"),
    **dict.fromkeys(("normalize_activations", "init.normalisation"), "normalisation"),
}
"""Keys here by names that a person may look for."""


def diagnose(words: Sequence[str], groups: Groups, one_run: bool = False) -> list[str]:
    """Problems of each override on its own; Hydra still checks how they combine.

    Numbers out of bounds are listed beside other problems; alone, they are found with all contradictions.

    Args:
        words: as typed, for example `["seed=42,49", "dataset=owt"]`.
        groups: knows the choices of the groups.
        one_run: comma lists are refused, for the flags that show the config of one run.
    """
    problems: list[str] = []
    out_of_bounds: list[str] = []
    for before, text in zip(["", *words], words, strict=False):
        override = parsed(as_typed(text, lambda key: is_text(key, groups)))
        if isinstance(override, Exception):
            problems.append(f"{shown(text)}: {_unparsed(override, before, text, groups)}")
        elif endless := _endless_range(override):
            problems.append(f"{shown(text)}: {endless}")
        elif one_run and override.is_sweep_override():
            problems.append(f"{shown(text)}: --cfg and --info show one run; give one value")
        else:
            problems += _check(override, text, groups)
            out_of_bounds += _out_of_bounds(override.key_or_group, _values(override))
    return problems and problems + out_of_bounds


def _unparsed(error: Exception, before: str, text: str, groups: Groups) -> str:
    """Why an override cannot be parsed, and how to write it instead.

    `before` is the word before it, to which it may belong: a shell splits at spaces.
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, ValueError):  # more digits than Python converts
        return "too many digits"
    parts = [part.strip() for part in text.partition("=")[2].split(",")]
    if len(parts) > 1 and "" in parts:
        return "a value is missing at a comma; lists have no spaces, or quotes around them for the shell"
    if is_text(key_of(text), groups) and (instead := how_to_quote(text)):
        return f"write it as {instead}"
    if "=" not in text:
        if meant := [f"{key}={text}" for key in ("task", "experiment") if text in _known(key, groups)]:
            return f"not of the form key=value; did you mean {meant[0]}?"
        if is_text(key_of(before), groups) and (instead := how_to_quote(f"{before} {text}")):
            return f"not of the form key=value; if it belongs to the word before it, write {instead}"
    return "not of the form key=value (see --help)"


def _known(key: str, groups: Groups) -> Collection[str]:
    return TASKS if key == "task" else groups.choices(key)


def _check(override: Override, text: str, groups: Groups) -> list[str]:
    key = override.key_or_group
    if key == "hydra.searchpath":
        return _check_searchpath(override.value(), text)
    if key.split(".")[0].split("/")[0] in HYDRA_KEYS:
        return []
    if key == "zip" and not isinstance(override.value(), list):
        return [f"{text}: write zip=[{text.partition('=')[2]}]"]
    if override.is_delete():
        return [f"{text}: no key can be deleted; give it a value, or null"]
    if override.is_add() and not groups.choices(key) and not _schemas(key):
        return [f"{text}: keys cannot be added; {unknown_key(key)}"]
    typed = None if override.is_sweep_override() else text.partition("=")[2]
    return check(groups, key, _values(override), typed)


def _check_searchpath(paths: Any, text: str) -> list[str]:
    if not isinstance(paths, list | None) or not all(isinstance(path, str) for path in paths or []):
        return [f"{text}: write hydra.searchpath=[FOLDER], or [FOLDER,FOLDER]"]
    return [f"{text}: there is no folder {path}" for path in missing_folders(paths or [])]


def check(groups: Groups, key: str, values: Sequence[Any], typed: str | None = None) -> list[str]:
    """Problems of the values of a key or group, from the command line or a grid.

    `typed` is how the only value was written, if that is known.
    """
    if groups.choices(key):
        return _check_choices(groups, key, values)
    if not _schemas(key):
        return [unknown_key(key)]
    return _check_values(key, values, typed)


def is_text(key: str, groups: Groups) -> bool:
    """Whether a key holds text, or the names of choices or texts."""
    return bool(groups.choices(key)) or any(of_text(type_of(*found)) for found in _schemas(key))


def _check_choices(groups: Groups, group: str, values: Sequence[Any]) -> list[str]:
    options = groups.choices(group)
    wrong = [value for value in values if not groups.has(group, str(value))]
    return [
        f"{group}={shown(value)}: not one of {', '.join(options)}{_hint(str(value), options)}"
        for value in wrong
    ]


def _check_values(key: str, values: Sequence[Any], typed: str | None) -> list[str]:
    problems = []
    for value in values:
        errors = [_type_problem(schema, path, value) for schema, path in _schemas(key)]
        if all(errors):
            problems.append(f"{key}={shown(value if typed is None else typed)}: {errors[0]}")
    return problems


def _out_of_bounds(key: str, values: Sequence[Any]) -> list[str]:
    """Problems of numbers of the right type."""
    problems = []
    for schema, path in _schemas(key)[:1]:
        number = _number(schema, path)
        for value in values:
            if number and _type_problem(schema, path, value) is None:
                why = number.problem(_converted(schema, path, value))
                problems += [f"{key}={shown(value)}: {why}"] if why else []
    return problems


def _number(schema: type, key: str) -> NumericField | None:
    """The numeric field of a dotted key; None if it has another type."""
    first, *rest = key.split(".", 1)
    if not rest:
        return numeric_fields(schema).get(first)
    field = next(field for field in dataclasses.fields(schema) if field.name == first)
    return _number(field.default_factory, *rest) if dataclasses.is_dataclass(field.default_factory) else None


def _endless_range(override: Override) -> str | None:
    """What is wrong with the length of a `range(...)`; None if it can be enumerated."""
    if override.value_type != ValueType.RANGE_SWEEP:
        return None
    sweep = override.value()
    try:
        length = math.ceil((sweep.stop - sweep.start) / sweep.step)
    except (ArithmeticError, ValueError):  # a step of 0, an infinite end, NaN
        return "the range has no end"
    if length < 1:
        return "the range has no value"
    return f"the range has {length} values, over {MOST_RUNS}" if length > MOST_RUNS else None


def _values(override: Override) -> list[Any]:
    known = override.value_type not in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP)
    return values_of(override) if known else []


def _schemas(key: str) -> list[tuple[type, str]]:
    """Dataclasses that have `key`, each with the key's path inside it."""
    head, _, rest = key.partition(".")
    variants: Sequence[type] = {
        "architecture": tuple(ARCHITECTURES.values()),
        "dataset": tuple(DATASET_SCHEMAS.values()),
    }.get(head, ())
    if variants and rest:
        parent = rest.rpartition(".")[0]
        return [(cls, rest) for cls in variants if rest in _keys(cls) or parent in _keys(cls, of=dict)]
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
    number = _number(schema, key)
    if number and number.kind is int:
        return number.type_problem(whole(value))
    if problem := text_problem(value, type_of(schema, key)):
        return problem
    try:
        _converted(schema, key, value)
    except Exception as error:  # OmegaConf's errors, and those from values such as Hydra's quoted strings
        return (number and number.problem(value)) or first_line(error)
    return None


def _converted(schema: type, key: str, value: Any) -> Any:
    """The value as OmegaConf converts it to the key's type."""
    OmegaConf.update(_trial_config(schema), key, whole(value) if holds(type_of(schema, key), int) else value)
    return OmegaConf.select(_trial_config(schema), key)


def unknown_key(key: str) -> str:
    """That there is no such key, with those that are spelled nearly so."""
    known = _keys(Schema)
    for head, variants in (("architecture", ARCHITECTURES.values()), ("dataset", DATASET_SCHEMAS.values())):
        known += [f"{head}.{inner}" for cls in variants for inner in _keys(cls)]
    if key in known:
        head, _, rest = key.partition(".")
        return f"{key}: the chosen {head} has no key {rest}"
    hint = f" (did you mean {_ELSEWHERE[key]}?)" if key in _ELSEWHERE else _hint(key, known)
    return f"unknown key {key}{hint}" if hint else f"unknown key {key}: see --help for all keys"


def _hint(word: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(dict.fromkeys(options)), n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
