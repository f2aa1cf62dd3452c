"""Bounds of numeric keys, declared with each field, and checks of values."""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_BOUNDS = "bounds"
_SHOWN_CHARACTERS = 60
_EXACT = 2**53
"""Whole numbers up to here are floats without rounding."""


class Limit(NamedTuple):
    """The last allowed value at one end of a range."""

    value: float
    words: str
    """What a value must be: `at least 1`."""


class Bounds(NamedTuple):
    """Range of a numeric key, both ends allowed."""

    least: Limit
    most: Limit


ABOVE_0 = Limit(1.17549436e-38, "above 0 (in float32: at least 1.2e-38)")
BELOW_1 = Limit(0.9999999, "below 1 (in float32: at most 0.9999999)")
LARGE = Limit(1e30, "at most 1e30 (float32 overflows soon after)")
INT32 = Limit(2**31 - 1, f"at most {2**31 - 1} (the largest index of 32 bits)")
INT64 = Limit(2**63 - 1, f"at most {2**63 - 1} (the largest integer of 64 bits)")
SEED = Limit(2**32 - 1, f"at most {2**32 - 1} (torch uses 32 bits: larger seeds repeat smaller ones)")
PEBIBYTE = 2**50
"""Bytes; arrays above this size fit into no machine."""


def number(default: float | None, *, least: float | Limit, most: float | Limit) -> Any:
    """Declare a numeric field of a config by its default and its bounds."""
    ends = Bounds(
        least if isinstance(least, Limit) else Limit(least, f"at least {least}"),
        most if isinstance(most, Limit) else Limit(most, f"at most {most}"),
    )
    return dataclasses.field(default=default, metadata={_BOUNDS: ends})


def positive(default: float | None) -> Any:
    """Declare a float above 0."""
    return number(default, least=ABOVE_0, most=LARGE)


def fraction(default: float | None) -> Any:
    """Declare a float from 0 to 1."""
    return number(default, least=Limit(0, "between 0 and 1"), most=Limit(1, "between 0 and 1"))


def below_1(default: float) -> Any:
    """Declare a float from 0 to 1, without 1."""
    return number(default, least=0, most=BELOW_1)


def coefficient(default: float) -> Any:
    """Declare the weight of a loss."""
    return number(default, least=0, most=LARGE)


def count(default: int | None, *, most: Limit) -> Any:
    """Declare an integer from 1."""
    return number(default, least=1, most=most)


def random_seed(default: int | None) -> Any:
    """Declare the seed of a random generator."""
    return number(default, least=0, most=SEED)


def same_as(cls: type, name: str) -> Any:
    """Declare a numeric field with the default and bounds of another class's field."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


class NumericField(NamedTuple):
    """Type and bounds of a numeric field."""

    kind: type
    """int or float."""
    optional: bool
    bounds: Bounds

    def problem(self, value: Any) -> str | None:
        """What `value` must be instead; None if it is allowed."""
        if value is None and self.optional:
            return None
        needed = self._other_type(value) or self._outside(value)
        return needed and f"must be {needed}"

    def type_problem(self, value: Any) -> str | None:
        """What a value of another type must be instead; None if its type is right."""
        needed = None if value is None and self.optional else self._other_type(value)
        return needed and f"must be {needed}"

    def _other_type(self, value: Any) -> str | None:
        if self.kind is int:
            return None if type(value) is int else "a whole number, written in digits"
        if type(value) not in (int, float):
            return "a number"
        return None if -math.inf < value < math.inf else "a finite number"

    def _outside(self, value: float) -> str | None:
        least, most = self.bounds
        if value < least.value or repr(value) == "-0.0":  # which would name another run than 0.0
            return least.words
        return most.words if value > most.value else None


@functools.cache
def numeric_fields(cls: type) -> Mapping[str, NumericField]:
    """Numeric fields of a config class, by name.

    Raises:
        KeyError: if one has no bounds.
    """
    found = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = set(typing.get_args(hints[field.name])) or {hints[field.name]}
        optional = type(None) in kinds
        kinds -= {type(None)}
        if kinds in ({int}, {float}):
            found[field.name] = NumericField(kinds.pop(), optional, field.metadata[_BOUNDS])
    return found


def number_problems(config: Any, prefix: str = "") -> dict[str, str]:
    """A line for each numeric field of a config with a wrong value, by the field's name."""
    found = {}
    cls: type = type(config)
    for name, field in numeric_fields(cls).items():
        value = getattr(config, name)
        if why := field.problem(value):
            found[name] = f"{prefix}{name}={shown(value)}: {why}"
    return found


def whole(value: Any) -> Any:
    """The whole number that is written as `1e8`, `1.5e6` or in quotes; any other value as it is."""
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, str) and len(value) < _SHOWN_CHARACTERS and re.fullmatch(r"[+-]?\d+(_\d+)*", value):
        return int(value)
    return value


def is_count(value: Any, below: int = 2**63) -> bool:
    """Whether a value from a file is an integer of at least 0 and smaller than `below`."""
    return type(value) is int and 0 <= value < below


def shown(value: Any) -> str:
    """A value as one types it, cut if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python converts
        return "an integer of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def one_of(problems: list[str], key: str, value: str, choices: Sequence[str]) -> None:
    """Append a line to `problems` if `value` is none of the choices."""
    if value not in choices:
        problems.append(f"{key}={shown(value)}: not one of {', '.join(choices)}")
