"""Checks of single values; each appends a line to `problems` if the value is invalid."""

from collections.abc import Sequence


def at_least(problems: list[str], key: str, value: float, least: float) -> None:
    if not value >= least:
        problems.append(f"{key}={value}: must be at least {least:g}")


def one_of(problems: list[str], key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        problems.append(f"{key}={value}: not one of {', '.join(choices)}")


def fraction(problems: list[str], key: str, value: float) -> None:
    if not 0 <= value <= 1:
        problems.append(f"{key}={value}: must lie between 0 and 1")
