"""`task=plan` on the terminal: a table per LM pass, then the cost of the whole sweep."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sae_sweep.report.formatting import TextTable, count, flop, hours, short_labels, size

_UNKNOWN = "not known"
_WIDEST = 200
_NARROWEST = 40


def describe_plan(document: Mapping[str, Any], *, width: int | None = None) -> str:
    """Plain text, no line wider than the terminal.

    Args:
        document: what `task=plan format=json` prints.
        width: in characters; by default the terminal's, or 200 if there is none.
    """
    width = max(_NARROWEST, width or shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns)
    runs = {run["name"]: run for run in document["runs"]}
    groups = document["groups"]
    parts = [
        _group(group, f"LM pass {number} of {len(groups)}", runs, width)
        for number, group in enumerate(groups, 1)
    ]
    return "\n\n".join([*parts, _totals(document, width)])


def _group(group: Mapping[str, Any], title: str, runs: Mapping[str, Mapping[str, Any]], width: int) -> str:
    members = [runs[name] for name in group["runs"]]
    layers = ", ".join(str(layer) for layer in group["layers"])
    head = (
        f"{title}: {group['model']} on {group['dataset']}, "
        f"{_plural(len(group['layers']), 'layer')} {layers}; "
        f"{_counted(len(members), 'run')}, about {count(group['lm_tokens'])} LM tokens"
    )
    return "\n".join([*_prose(head, width), *_table(members, width)])


def _table(members: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    asked = any(run["grids"] for run in members)
    table = TextTable(["run", "id", "d_sae", "tokens", *(["asked for by"] if asked else [])], left={0, 1, 4})
    for run in members:
        d_sae = "-" if run["d_sae"] is None else f"{run['d_sae']:,}"
        grids = [", ".join(run["grids"]) or "-"] if asked else []
        table.add([run["name"], run["id"], d_sae, count(run["tokens"]), *grids])
    if table.width > width and len(members) > 1:
        table.rename(short_labels([run["name"] for run in members]))
    return table.lines(width, drop=(4, 2) if asked else (2,))


def _totals(document: Mapping[str, Any], width: int) -> str:
    cost = document["cost"]
    title = (
        f"{_counted(len(document['runs']), 'run')} in {_counted(cost['lm_passes'], 'LM pass', 'LM passes')} "
        f"(sweep {document['sweep']}, fuse={str(document['fuse']).lower()})"
    )
    table = TextTable(["cost", "", ""], left={0, 1, 2})
    table.add(["LM tokens", f"about {count(cost['lm_tokens'])}", _solo(cost)])
    table.add(["SAE tokens", count(cost["sae_tokens"]), ""])
    table.add(["LM compute", _or_unknown(cost["lm_flops"], flop), _rate(cost, "tflops_lm")])
    table.add(["SAE compute", _or_unknown(cost["sae_flops"], flop), _rate(cost, "tflops_sae")])
    _add_room(table, document["room"])
    cached = "" if cost["cache_bytes"] is None else f"if cached, in {cost['cache_dtype']}"
    table.add(["cache", _or_unknown(cost["cache_bytes"], size), cached])
    table.add(
        ["time", _or_unknown(cost["hours"], hours), "LM and SAEs one after the other, evaluation aside"]
    )
    notes = [line for note in document["notes"] for line in _prose(note, width)]
    lacking = [line for problem in document["lacking"] for line in _prose(f"Not here: {problem}", width)]
    return "\n".join([*_prose(title, width), *table.lines(width, drop=(2,)), *notes, *lacking])


def _add_room(table: TextTable, room: Mapping[str, Any]) -> None:
    here = "" if room["machine_memory"] is None else f"; this machine has {size(room['machine_memory'])}"
    largest = f"at least, for the largest SAE in training{here}"
    table.add(["memory", _or_unknown(room["memory"], size), largest if room["memory"] is not None else ""])
    free = f"{size(room['free_disk'])} are free"
    for_a_while = "" if not room["checkpoints"] else f"checkpoints up to {size(room['checkpoints'])}; "
    table.add(["weights on disk", _or_unknown(room["results"], size), f"{for_a_while}{free}"])


def _prose(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, min(width, 100))


def _solo(cost: Mapping[str, Any]) -> str:
    return f"one by one: {count(cost['lm_tokens_solo'])}"


def _rate(cost: Mapping[str, Any], key: str) -> str:
    if cost[key] is None:
        return ""
    source = "measured here" if cost["throughput"] == "measured" else "given (plan.tflops)"
    return f"at {cost[key]:.3g} TFLOP/s, {source}"


def _or_unknown(value: Any, show: Any) -> str:
    return _UNKNOWN if value is None else show(value)


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {_plural(number, one, many)}"


def _plural(number: int, one: str, many: str | None = None) -> str:
    return one if number == 1 else many or f"{one}s"
