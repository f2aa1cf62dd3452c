"""Plain values checked against type hints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import pytest

from sae_sweep.config import ConfigError, build, typed


class Member(TypedDict):
    name: str
    size: NotRequired[int]


@dataclass(frozen=True)
class Inner:
    ratio: float = 0.5


@dataclass(frozen=True)
class Outer:
    number: int
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (1, int, 1),
        (2**70, int, 2**70),
        (1, float, 1),
        (None, int | None, None),
        ("a", str | int, "a"),
        (["a"], tuple[str, ...], ("a",)),
        (["a"], Sequence[str], ("a",)),
        (["a"], list[str], ["a"]),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        ({"name": "a"}, Member, {"name": "a"}),
        ([{"name": "a", "size": 1}], list[Member], [{"name": "a", "size": 1}]),
        ({"number": 1, "inner": {"ratio": 1}, "maybe": None}, Outer, Outer(1, Inner(1))),
        ({"number": 1, "maybe": {}}, Outer, Outer(1, maybe=Inner())),
        ({"a": [{}]}, Any, {"a": [{}]}),
    ],
)
def test_a_value_of_its_type_is_returned(value: Any, hint: Any, found: Any) -> None:
    assert typed(value, hint, "key") == found
    assert type(typed(value, hint, "key")) is type(found)


@pytest.mark.parametrize(
    ("value", "hint", "problems"),
    [
        (True, int, ["key=True: must be a whole number"]),
        (True, float, ["key=True: must be a finite number"]),
        (1.0, int, ["key=1.0: must be a whole number"]),
        (float("nan"), float, ["key=nan: must be a finite number"]),
        (10**400, float, None),
        ("1", int | None, ["key='1': must be a whole number or null"]),
        ("ab", list[str], ["key='ab': must be a list"]),
        ([1, "b"], tuple[str, ...], ["key[0]=1: must be text"]),
        ({1: 2}, Mapping[str, int], ["key[0]=1: must be text"]),
        ({}, Member, ["key.name is missing"]),
        ({"name": "a", "sized": 1}, Member, ["key.sized: unknown key"]),
        ({"number": "x", "inner": {"ratio": []}}, Outer, None),
        ({"number": 1, "a\nb": 1}, Outer, ["key.a\\nb: unknown key"]),
        ([], Outer, ["key=[]: must be a mapping"]),
    ],
)
def test_another_value_is_named(value: Any, hint: Any, problems: list[str] | None) -> None:
    with pytest.raises(ConfigError) as refused:
        typed(value, hint, "key")
    if problems is not None:
        assert list(refused.value.problems) == problems
    assert all(len(problem) < 200 and problem.isprintable() for problem in refused.value.problems)


def test_all_problems_are_raised_together() -> None:
    with pytest.raises(ConfigError) as refused:
        build(Outer, {"inner": {"ratio": "x", "other": 1}, "names": [1], "more": 1})
    assert set(refused.value.problems) == {
        "more: unknown key",
        "number is missing",
        "inner.other: unknown key",
        "inner.ratio='x': must be a finite number",
        "names[0]=1: must be text",
    }
