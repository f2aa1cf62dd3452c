"""`task=status` on the terminal: one line per run, the reason of each failure, and the totals."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.report.formatting import TextTable, count, marked, mixed_note, short_labels, span

_WIDEST = 200


def describe_status(document: Mapping[str, Any], *, width: int | None = None) -> str:
    """Plain text; only paths may be wider than the terminal.

    Args:
        document: what `task=status format=json` prints.
        width: in characters; by default the terminal's, or 200 if there is none.
    """
    width = max(60, width or shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns)
    runs = document["runs"]
    table = TextTable(["run", "state", "for", "tokens", "tokens/s", "ETA"], left={0, 1})
    for run in runs:
        table.add(_cells(run))
    if table.width > width and len(runs) > 1:
        table.rename(short_labels([run["name"] for run in runs]))
    parts = ["\n".join([document["folder"], *table.lines(width, drop=(4, 2))])]
    parts += [_failure(run, width) for run in runs if run["error"] is not None]
    if any(run["mixed"] for run in runs):
        parts.append(
            "\n".join([*_wrapped(mixed_note(), width), *(_changes(run) for run in runs if run["mixed"])])
        )
    if document["counts"]["interrupted"]:
        hint = "interrupted: no process works on it; run the command that started it again to resume it."
        parts.append("\n".join(_wrapped(hint, width)))
    return "\n\n".join([*parts, _totals(document["counts"])])


def _cells(run: Mapping[str, Any]) -> Sequence[str]:
    return [
        run["name"],
        marked(run["state"], run["mixed"]),
        _or_dash(run["age_s"], span),
        "-" if run["budget"] is None else f"{count(run['tokens'])} of {count(run['budget'])}",
        _or_dash(run["tokens_per_s"], lambda speed: count(round(speed))),
        _or_dash(run["eta_s"], span),
    ]


def _failure(run: Mapping[str, Any], width: int) -> str:
    reason = _wrapped(f"{run['state']}: {run['name']}: {run['error']}", width)
    return "\n".join([*reason, f"  see {run['log']}"])


def _changes(run: Mapping[str, Any]) -> str:
    """At which steps what changed."""
    steps = (
        f"from step {change.get('step')} on other {', '.join(name for name in change if name != 'step')}"
        for change in run["mixed"]
    )
    return f"  {run['name']}: {'; '.join(steps)}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, min(width, 100), break_long_words=False, break_on_hyphens=False)


def _totals(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no runs"


def _or_dash(value: Any, show: Any) -> str:
    return "-" if value is None else show(value)
