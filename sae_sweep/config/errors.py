"""What can go wrong, or be asked to stop."""

import signal
from collections.abc import Iterable


class SaeSweepError(Exception):
    """Anything a user can mend; the message says what was wrong, where, and what to do."""


class ConfigError(SaeSweepError):
    """A config that cannot run: all of its problems at once, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and can be resumed
    """A signal asked to stop and the state is on disk; whoever catches it exits with 128 + `signum`."""

    def __init__(self, signum: int, what_now: str = "launch the same command again to resume") -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what_now}")


def first_line(error: BaseException) -> str:
    """What another library's error says in one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
