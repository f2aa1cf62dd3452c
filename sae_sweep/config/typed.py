"""Checks plain values from a file against type hints, and builds the config dataclasses from them."""

import dataclasses
import reprlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.config.errors import ConfigError

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
}
"""Types as a user calls them; all others are mappings."""
_LARGEST = sys.float_info.max
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def typed(value: Any, hint: Any, key: str) -> Any:
    """The value as the type `hint`, which may be a dataclass, a TypedDict, a union, or a container of these.

    Nothing is converted, except lists to tuples and mappings to dataclasses.

    Raises:
        ConfigError: naming each value under `key` that has another type, is missing or is unknown.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint))):
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, inner, key)
    if not _is_a(value, origin or hint):
        raise ConfigError([f"{key}={_short.repr(value)}: must be {_name(origin or hint)}"])
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, key)
    if typing.is_typeddict(hint):
        return _members(value, typing.get_type_hints(hint), hint.__required_keys__, key)
    if isinstance(value, Mapping):
        _all(value.keys(), inner[:1], key)
        return _members(value, dict.fromkeys(value, inner[1] if inner else Any), (), key)
    if isinstance(value, list):
        items = _all(value, inner[:1], key)
        return items if origin is list else tuple(items)
    return value


def build(cls: type, values: Mapping[str, Any], key: str = "") -> Any:
    """Build a dataclass from a mapping and those in it from mappings.

    Raises:
        ConfigError: listing what is missing, unknown or of another type, or what the class itself refuses.
    """
    fields = {part.name: part for part in dataclasses.fields(cls)}
    required = [
        name
        for name, part in fields.items()
        if part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
    ]
    hints = typing.get_type_hints(cls)
    return cls(**_members(values, {name: hints[name] for name in fields}, required, key))


def _members(
    values: Mapping[str, Any], hints: Mapping[str, Any], required: Sequence[str] | frozenset[str], key: str
) -> dict[str, Any]:
    """Values of a mapping as the types of their keys; all problems are raised together."""
    problems = [f"{_below(key, name)}: unknown key" for name in values if name not in hints]
    missing = (name for name in hints if name in required and name not in values)
    problems += [f"{_below(key, name)} is missing" for name in missing]
    found = {}
    for name in (name for name in values if name in hints):
        try:
            found[name] = typed(values[name], hints[name], _below(key, name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _below(key: str, name: Any) -> str:
    return f"{key}.{_shown(name)}" if key else _shown(name)


def _shown(name: Any) -> str:
    """A key on one line, however long it is."""
    return _short.repr(name)[1:-1] if isinstance(name, str) else _short.repr(name)


def _one_of(value: Any, hints: Sequence[Any], key: str) -> Any:
    for hint in hints:
        if _is_a(value, typing.get_origin(hint) or hint):
            return typed(value, hint, key)
    names = " or ".join(_name(typing.get_origin(hint) or hint) for hint in hints)
    raise ConfigError([f"{key}={_short.repr(value)}: must be {names}"])


def _all(values: Any, hints: Sequence[Any], key: str) -> list[Any]:
    (hint,) = hints or (Any,)
    return [typed(value, hint, f"{key}[{index}]") for index, value in enumerate(values)]


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple or kind is Sequence:
        return isinstance(value, list)
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type, kind)):
        return True
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return isinstance(value, Mapping)
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return _NAMES.get(kind, "a mapping")
