"""Builds `report.html`, and the folder of details beside it."""

import hashlib
import html
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep import __version__
from sae_sweep.config import escaped
from sae_sweep.report.page import contexts, families, features, figures, matching, runs, sections
from sae_sweep.report.page.pack import Strings, encoded, text
from sae_sweep.store import SweepFolder, write_text

SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/plot.umd.min.js",
    *("text.js", "data.js", "table.js", "charts.js", "matrix.js", "families.js", "browser.js", "main.js"),
)
"""In the order in which the page runs them."""
_STATIC = files("sae_sweep.report.page") / "static"
_CITATION = """@software{sae_sweep,
  title = {sae_sweep: which features of a sparse autoencoder belong to the language model},
  version = {VERSION},
  year = {2026},
}
@misc{sae_dataset_sensitivity_2025,
  title = {{SAE} Dataset Sensitivity in Feature Matching and a Hypothesis on Position Features},
  year = {2025},
}"""


class Page(NamedTuple):
    """The report of a sweep."""

    path: Path
    details: Path | None
    """Folder with the contexts of all features; None where the page itself holds all that are known."""
    problems: list[str]
    """What is left out of the page because a file is damaged, a line each."""


def write_page(folder: SweepFolder) -> Page:
    """Write the report of a sweep from the files of its runs and its `analysis/`.

    Raises:
        SaeSweepError: if the plan cannot be read, or a file cannot be written; none is left incomplete.
    """
    problems: list[str] = []
    found = runs.read_runs(folder)
    compared = matching.read_compared(found, problems)
    of_hooks = families.read_families(found, problems)
    core: dict[str, Any] = {
        "sweep": folder.root.name,
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": __version__,
        "runs": {"names": found.names, "shorts": found.shorts},
        "answer": matching.answer_section(found, compared, problems),
        "table": runs.table(found),
        "curves": runs.curves(found, problems),
        "matching": None if compared is None else matching.matrix_section(found, compared, problems),
        "layers": [] if compared is None else runs.layers(found, compared.places),
        "families": families.section(of_hooks, problems),
        "sections": sections.read_sections(found, problems),
        "figures": figures.section(found, problems),
        "methods": runs.methods(found),
        "citation": _CITATION.replace("VERSION", __version__),
    }
    blocks = {} if compared is None else {"pairs": encoded(matching.pairs_block(found, compared))}
    details, more = _features(folder, found, compared, families.members(found, of_hooks), problems)
    core |= {"features": more.pop("about"), "problems": [escaped(one) for one in problems]}
    write_text(folder.report, _html(core, blocks | more))
    return Page(folder.report, details, problems)


def _features(
    folder: SweepFolder,
    found: runs.Runs,
    compared: matching.Compared | None,
    members: families.Members,
    problems: list[str],
) -> tuple[Path | None, dict[str, Any]]:
    """The blocks of the feature browser; writes the folder beside the page where they do not hold all."""
    strings = Strings()
    analysed = features.read_analysed(found, strings, problems)
    listed = features.listing(found, analysed, compared, members, problems)
    inside = contexts.chosen(listed, analysed, members, contexts.INSIDE)
    texts = {place: contexts.read_texts(found, place, one, problems) for place, one in analysed.items()}
    known = {place: one for place, one in texts.items() if one is not None}
    inside = {place: numbers for place, numbers in inside.items() if place in known}
    nearest = contexts.nearest_of(found, compared, listed.size)
    words = text(strings.texts)
    key = hashlib.sha256(listed.block + words.encode()).hexdigest()[:16]
    live = sum(int((listed.density[listed.rows(place)] > 0).sum()) for place in known)
    whole = live == sum(map(len, inside.values()))
    details = None if whole else _write_details(folder.details, key, known, nearest)
    about = {
        "count": int(listed.starts[-1]),
        "analysed": sorted(known),
        "inside": sum(map(len, inside.values())),
        "live": live,
        "key": key,
        "chunk": contexts.CHUNK,
        "folder": None if details is None else details.name,
    }
    blocks = {"features": encoded(listed.block)}
    if known:
        blocks |= {"words": words, "details": encoded(contexts.block(known, inside, nearest))}
    return details, {"about": about, **blocks}


def _write_details(
    folder: Path, key: str, texts: Mapping[int, contexts.Texts], nearest: Callable[[int], contexts.Nearests]
) -> Path:
    """Write the details of all features as scripts: a page opened as a file can read nothing else."""
    written = set()
    for place, one in texts.items():
        for number, block in contexts.chunks(one, place, nearest):
            path = folder / f"{place}-{number}.js"
            write_text(path, f'saeSweepDetails("{key}", "{encoded(block)}");\n')
            written.add(path.name)
    for path in folder.glob("*-*.js"):
        if path.name not in written:
            path.unlink(missing_ok=True)
    return folder


def _html(core: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """The page: style, scripts and data in one file, the answer as plain text for readers without scripts."""
    before, _, after = (_STATIC / "page.html").read_text().partition("<!-- parts -->")
    scripts = [f"<script>{(_STATIC / name).read_text()}</script>" for name in SCRIPTS]
    data = {"core": text(core), **blocks}
    holders = [f'<script type="text/plain" id="data-{name}">{one}</script>' for name, one in data.items()]
    shown = {
        "title": html.escape(escaped(core["sweep"])),
        "sentence": html.escape(escaped(core["answer"]["sentence"])),
        "style": (_STATIC / "page.css").read_text(),
    }
    for name, value in shown.items():
        before = before.replace(f"<!-- {name} -->", value)
    return "\n".join([before, *holders, *scripts, after])
