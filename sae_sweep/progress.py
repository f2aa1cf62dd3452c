"""How far a group of runs is: a bar on a terminal, elsewhere a plain line about once a minute."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

LINE_EVERY_S = 50.0
"""Seconds between two plain lines; with what passes between two looks, it is under a minute."""
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """Progress of one group, in SAE inputs per run, or of another long piece of work."""

    def __init__(
        self, label: str, total: int, initial: int = 0, row: int | None = None, unit: str = "tokens"
    ) -> None:
        """Show the bar, if standard error is a terminal.

        Args:
            label: names the group.
            total: SAE inputs at its end.
            initial: SAE inputs at its start, or at its first look.
            row: line of the bar below the cursor where several are shown; they vanish when they are closed.
            unit: what is counted, if it is not SAE inputs.
        """
        self._label, self._total, self._initial, self._unit = label, total, initial, f" {unit}"
        self._since = self._said = time.monotonic()
        self._bar: tqdm | None = None
        if _has_room():
            self._bar = _Bar(
                desc=label,
                total=total,
                initial=initial,
                unit=self._unit,
                unit_scale=unit == "tokens",
                dynamic_ncols=True,
                file=sys.stderr,
                position=row,
                leave=row is None,
            )

    @property
    def due(self) -> bool:
        """Whether `show` would show anything now."""
        return self._bar is not None or time.monotonic() - self._said >= LINE_EVERY_S

    def show(self, tokens: int, values: Mapping[str, str]) -> None:
        """Show a position and what was measured there; without a bar, only when a line is due."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            if tokens < self._bar.n:  # a run started over
                self._bar.n = tokens
            if tokens > self._bar.n:
                self._bar.update(tokens - self._bar.n)
            else:
                self._bar.refresh()  # its clock goes on
        elif self.due:
            self._said = time.monotonic()
            log.info("%s", self._line(tokens, values))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, tokens: int, values: Mapping[str, str]) -> str:
        line: str = _Bar.format_meter(
            *(tokens, self._total, time.monotonic() - self._since),
            prefix=self._label,
            unit=self._unit,
            unit_scale=self._unit == " tokens",
            initial=self._initial,
            postfix=", ".join(f"{name} {value}" for name, value in values.items()),
            bar_format=_LINE,
        )
        return line


class _Bar(tqdm):
    """A bar that shows `17.0 s each` for slow steps; tqdm has `17.00s/` before the unit."""

    @staticmethod
    def format_meter(*args: Any, unit: str = "it", **keys: Any) -> str:
        line: str = tqdm.format_meter(*args, unit=unit, **keys)
        return line.replace(f"s/{unit}", " s each")


def shown_means(points: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Mean loss, L0 and number of dead features over the latest points of some runs, for `Progress.show`.

    The names of a point's values may have a section in front (`train/loss`).
    """
    latest = [{key.split("/")[-1]: value for key, value in point.items()} for point in points]
    means = {}
    for label, name in (("loss", "loss"), ("L0", "l0"), ("dead", "dead")):
        values = [point[name] for point in latest if isinstance(point.get(name), int | float)]
        if values:
            means[label] = f"{sum(values) / len(values):.4g}"
    return means


def _has_room() -> bool:
    """Whether standard error is a terminal that can show a bar: some say that they have no columns."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return True
