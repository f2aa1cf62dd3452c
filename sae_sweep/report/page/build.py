"""Builds `report.html`, and the folder of details beside it."""

import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from sae_sweep import __version__
from sae_sweep.config import SaeSweepError, escaped
from sae_sweep.report.page import contexts, families, features, figures, matching, runs, sections
from sae_sweep.report.page.analysed import read_all_statistics, read_analysed
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
    sentence: str
    """The answer."""
    problems: list[str]
    """What is left out of the page because a file is damaged, a line each."""


def write_page(folder: SweepFolder, left_out: Sequence[str] = ()) -> Page:
    """Write the report of a sweep from the files of its runs and its `analysis/`.

    Args:
        folder: of the sweep.
        left_out: lines about runs whose SAE is known to be damaged.

    Raises:
        SaeSweepError: if the plan cannot be read, or a file cannot be written; none is left incomplete.
    """
    problems: list[str] = []
    found = runs.read_runs(folder)
    compared = matching.read_compared(found, problems)
    of_hooks = families.read_families(found, problems)
    curves = runs.curves(found, problems)
    core: dict[str, Any] = {
        "sweep": folder.root.name,
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": __version__,
        "runs": {"names": found.names, "shorts": found.shorts},
        "answer": matching.answer_section(found, compared, problems),
        "table": runs.table(found, curves, problems),
        "curves": curves,
        "matching": None if compared is None else matching.matrix_section(found, compared, problems),
        "layers": [] if compared is None else runs.layers(found, compared.places),
        "families": families.section(of_hooks, problems),
        "sections": sections.read_sections(found, problems),
        "figures": figures.section(found, problems),
        "methods": runs.methods(found),
        "citation": _CITATION.replace("VERSION", __version__),
    }
    blocks = {} if compared is None else {"pairs": encoded(matching.pairs_block(found, compared))}
    members = families.members(found, of_hooks)
    details, more = _features(folder, found, compared, members, problems)
    core |= {"features": more.pop("about"), "problems": _shown(left_out, problems, folder)}
    write_text(folder.report, _html(core, blocks | more))
    return Page(folder.report, details, core["answer"]["sentence"], problems)


def _features(
    folder: SweepFolder,
    found: runs.Runs,
    compared: matching.Compared | None,
    members: families.Members,
    problems: list[str],
) -> tuple[Path | None, dict[str, Any]]:
    """The blocks of the feature browser; writes the folder beside the page where they do not hold all."""
    strings = Strings()
    statistics = read_all_statistics(found, compared, problems)
    known = read_analysed(found, statistics, strings, problems)
    inside = contexts.chosen(statistics, known, members, contexts.INSIDE)
    numbers = features.listed(statistics, inside, features.LISTED)
    block = features.listing(found, statistics, numbers, known, compared, members)
    words = text(strings.texts)
    key = hashlib.sha256(block + words.encode()).hexdigest()[:16]
    live = sum(len(statistics.live(place)) for place in known)
    beside = _Beside(folder.details, key) if live > sum(map(len, inside.values())) else None
    parts = {}
    for place, one in known.items():
        nearest = contexts.nearest_of(found, compared, place, statistics.size(place))
        try:
            texts = contexts.read_texts(one)
        except SaeSweepError as error:
            problems.append(str(error))
            continue
        parts[place] = contexts.part(place, texts, inside[place], nearest)
        if beside is not None:
            beside.write(place, contexts.chunks(place, texts, nearest))
    _remove_old(folder.details, set() if beside is None else beside.written)
    blocks = {"features": encoded(block)}
    if parts:
        compared_places = compared.places if compared is not None else []
        details = contexts.block(list(parts.values()), compared_places)
        blocks |= {"words": words, "details": encoded(details)}
    about = {
        "count": int(statistics.starts[-1]),
        "listed": sum(map(len, numbers)),
        "analysed": sorted(parts),
        "inside": sum(len(inside[place]) for place in parts),
        "live": live,
        "key": key,
        "chunk": contexts.CHUNK,
        "folder": None if beside is None else folder.details.name,
        "followed": sorted(members.followed),
    }
    return None if beside is None else folder.details, {"about": about, **blocks}


def _shown(left_out: Sequence[str], problems: Sequence[str], folder: SweepFolder) -> list[str]:
    """What is left out, each once, with paths as seen from the sweep's folder."""
    new = [one for one in dict.fromkeys(problems) if not any(one in line for line in left_out)]
    return [escaped(one.replace(f"{folder.root}/", "")) for one in (*left_out, *new)]


class _Beside:
    """Writes the details of all features as scripts: a page opened as a file can read nothing else."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self.written: set[str] = set()
        """Names of the files."""

    def write(self, place: int, chunks: Iterable[tuple[int, bytes]]) -> None:
        for number, block in chunks:
            path = self._folder / f"{place}-{number}.js"
            write_text(path, f'saeSweepDetails("{self._key}", "{encoded(block)}");\n')
            self.written.add(path.name)


def _remove_old(folder: Path, written: set[str]) -> None:
    """Remove what an earlier page read, and the folder if it is empty then."""
    with suppress(OSError):
        for path in folder.glob("*-*.js"):
            if path.name not in written:
                path.unlink()
        if not written:
            folder.rmdir()


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
