"""Errors that the user can fix."""

from collections.abc import Iterable


class SaeSweepError(Exception):
    """An error the user can fix; the message says what was wrong, where, and what to do."""


class ConfigError(SaeSweepError):
    """An invalid config; `problems` has one line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
