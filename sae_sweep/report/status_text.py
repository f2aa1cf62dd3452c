"""`task=status` on the terminal: one line per run, the reason of each failure, and the totals."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.config.pasted import pasted
from sae_sweep.report.formatting import TextTable, count, marked, mixed_note, span

_WIDEST = 200
_NARROWEST = 40
_MOST_NAMED = 3


def describe_status(document: Mapping[str, Any], *, width: int | None = None) -> str:
    """Plain text; only paths may be wider than the terminal.

    Args:
        document: what `task=status format=json` prints.
        width: in characters; by default the terminal's, or 200 if there is none.
    """
    width = max(_NARROWEST, width or shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns)
    runs = document["runs"]
    table = TextTable(["run", "state", "for", "tokens", "tokens/s", "ETA"], left={0, 1})
    for run in runs:
        table.add(_cells(run))
    parts = ["\n".join([pasted(document["folder"]), *table.lines(width, drop=(4, 2, 5))])]
    parts += [_failure(failed, width) for failed in _by_cause(runs)]
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
        run["short"],
        marked(run["state"], run["mixed"]),
        _or_dash(run["age_s"], span),
        "-" if run["budget"] is None else f"{count(run['tokens'])} of {count(run['budget'])}",
        _or_dash(run["tokens_per_s"], lambda speed: count(round(speed))),
        _or_dash(run["eta_s"], span),
    ]


def _by_cause(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The runs with an error, those with one cause together."""
    causes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["error"] is not None:
            causes.setdefault((run["state"], run["error"]), []).append(run)
    return list(causes.values())


def _failure(runs: Sequence[Mapping[str, Any]], width: int) -> str:
    """One cause, with the runs that it ended and the log of the first."""
    first = runs[0]
    names = ", ".join(run["short"] for run in runs[:_MOST_NAMED])
    more = f" and {len(runs) - _MOST_NAMED} more" if len(runs) > _MOST_NAMED else ""
    reason = _wrapped(f"{first['state']}: {names}{more}: {first['error']}", width)
    return "\n".join([*reason, f"  see {pasted(first['log'])}"])


def _changes(run: Mapping[str, Any]) -> str:
    """At which steps what changed."""
    steps = (
        f"from step {change.get('step')} on other {', '.join(name for name in change if name != 'step')}"
        for change in run["mixed"]
    )
    return f"  {run['short']}: {'; '.join(steps)}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, min(width, 100), break_long_words=False, break_on_hyphens=False)


def _totals(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no runs"


def _or_dash(value: Any, show: Any) -> str:
    return "-" if value is None else show(value)
