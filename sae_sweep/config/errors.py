"""Errors that the user can fix, and the request to stop."""

import signal
from collections.abc import Iterable


class SaeSweepError(Exception):
    """An error the user can fix; the message says what was wrong, where, and what to do."""


class ConfigError(SaeSweepError):
    """An invalid config; `problems` has one line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Interrupted(BaseException):
    """A stop signal arrived and the state is saved; the process should exit with 128 + `signum`."""

    def __init__(self, signum: int, what_now: str = "launch the same command again to resume") -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what_now}")


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
