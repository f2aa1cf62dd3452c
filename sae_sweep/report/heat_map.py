"""The matching matrix as a page of its own: hover over a cell to read it, click on a head to sort by it."""

import math
from html import escape
from pathlib import Path

from matplotlib import colormaps
from matplotlib.colors import to_hex

from sae_sweep.analysis import Comparison
from sae_sweep.config import escaped
from sae_sweep.report.formatting import short_labels
from sae_sweep.store import write_bytes

_STYLE = """
body{font:13px system-ui,sans-serif;color:#222;margin:12px}
table{border-collapse:collapse}
th{font-weight:400;text-align:right;padding:2px 6px;white-space:nowrap;cursor:pointer}
thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;padding:6px 2px}
td{width:2.6em;height:2.1em;text-align:center;font-size:11px;border:1px solid #fff;cursor:default}
td:hover{outline:2px solid #222}
td.u{font-style:italic;border:1px dashed #222}
#said{min-height:1.4em;margin:8px 0}
"""
_SCRIPT = """
const body=document.querySelector('tbody'),said=document.getElementById('said');
document.querySelectorAll('td').forEach(c=>c.onmouseover=()=>{said.textContent=c.title});
document.querySelectorAll('thead th').forEach((head,i)=>head.onclick=()=>{
  const value=r=>parseFloat(r.children[i].dataset.v??'-1');
  [...body.children].sort((a,b)=>i?value(b)-value(a):a.dataset.i-b.dataset.i).forEach(r=>body.append(r))});
"""


def write_heat_map(path: Path, comparison: Comparison) -> Path:
    """Write the page.

    Raises:
        SaeSweepError: if the file cannot be written; none is left incomplete.
    """
    write_bytes(path, heat_map(comparison).encode())
    return path


def heat_map(comparison: Comparison) -> str:
    """The page as HTML without links to anything outside it.

    A row's cells are the shares of its features that have a match in the column's SAE; the last column is
    the share that matches what the SAE started from. Cells of an SAE that still matches its start are dashed.
    """
    labels = short_labels(comparison.names, comparison.keys)
    heads = "".join(f"<th>{escape(head)}</th>" for head in ("", *labels, "its own start"))
    rows = "".join(_row(comparison, labels, i) for i in range(len(labels)))
    about = f"matched: best decoder cosine above {comparison.threshold:g}; dashed: still matches its start"
    return (
        f'<!doctype html><meta charset="utf-8"><title>Matching matrix</title><style>{_STYLE}</style>'
        f'<div>Share of the row\'s features found in the column (%)</div><div id="said">{about}</div>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><script>{_SCRIPT}</script>\n"
    )


def _row(comparison: Comparison, labels: list[str], i: int) -> str:
    weak = [match > comparison.undertrained_above for match in comparison.init_matches]
    cells = []
    for j, name in enumerate(comparison.names):
        what = f"of the features of {comparison.names[i]} have a match in {name}"
        cells.append(_cell(float(comparison.ratios[i, j]), what, undertrained=weak[i] or weak[j]))
    own = f"of the features of {comparison.names[i]} match what it started from"
    cells.append(_cell(comparison.init_matches[i], own, undertrained=weak[i]))
    return f'<tr data-i="{i}"><th>{escape(labels[i])}</th>{"".join(cells)}</tr>'


def _cell(share: float, what: str, *, undertrained: bool) -> str:
    if math.isnan(share):
        return "<td></td>"
    colour = to_hex(colormaps["viridis"](share))
    ink = "#000" if share > 0.5 else "#fff"
    title = escape(escaped(f"{share:.1%} {what}{', of which one still matches its start' * undertrained}"))
    kind = ' class="u"' * undertrained
    return (
        f'<td{kind} data-v="{share:.6f}" title="{title}" style="background:{colour};color:{ink}">'
        f"{100 * share:.0f}</td>"
    )
