"""Families with the text that makes their members fire, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from sae_sweep.analysis.families import Families
from sae_sweep.analysis.family_keys import Kind
from sae_sweep.analysis.family_results import FamilyResults
from sae_sweep.report.analysis_files import analysis_files, read_analysis
from sae_sweep.report.family_files import kind_label
from sae_sweep.report.markdown import inline
from sae_sweep.report.parquet import write_parquet
from sae_sweep.store import write_text

_FAMILIES = 10
"""Families of each kind."""
_MEMBERS = 2
"""Members of each family."""
_CONTEXTS = 3
"""Contexts of each member."""
_SCHEMA = pyarrow.schema(
    [
        *(("kind", pyarrow.string()), ("family", pyarrow.int32()), ("runs", pyarrow.int32())),
        *(("run", pyarrow.string()), ("feature", pyarrow.int32()), ("rank", pyarrow.int32())),
        *(("activation", pyarrow.float32()), ("before", pyarrow.string())),
        *(("token", pyarrow.string()), ("after", pyarrow.string())),
    ]
)


class Analysis(NamedTuple):
    """A run's `features/`, with the contexts that `task=analyse` found."""

    folder: Path
    run_id: str


class Examples(NamedTuple):
    """Files with examples of families."""

    table: Path
    """Parquet, a row per context: kind, family, run, feature, rank, activation, text before, token, after."""
    page: Path
    """The same as Markdown."""


def write_examples(
    folder: Path, results: FamilyResults, analyses: Mapping[str, Analysis], *, seed: int = 0
) -> Examples | None:
    """Write random families of each kind with the highest activations of their members.

    Args:
        folder: of the families.
        results: families and their kinds.
        analyses: runs that `task=analyse` has read.
        seed: of the choice of families.

    Returns None if no run was analysed.

    Raises:
        SaeSweepError: if a file of an analysis is damaged, or one cannot be written.
    """
    chosen = list(_chosen(results, analyses, seed))
    if not chosen:
        return None
    texts = {run: _Contexts(analyses[run]) for run in {one.run for one in chosen}}
    rows = [row for one in chosen for row in _rows(one, texts[one.run])]
    table = pyarrow.Table.from_pylist(rows, schema=_SCHEMA)
    path = folder / "examples.md"
    write_text(path, _page(rows))
    return Examples(write_parquet(folder / "examples.parquet", table), path)


class _Member(NamedTuple):
    kind: str
    family: int
    runs: int
    run: str
    feature: int


def _chosen(results: FamilyResults, analyses: Mapping[str, Analysis], seed: int) -> Iterator[_Member]:
    """Members of random families of each kind, in runs that were analysed and lie far apart in the sweep."""
    found, rng = results.families, np.random.default_rng(seed)
    for kind in results.kinds:
        if kind.kind == "common" or (kind.kind == "only" and not kind.value):
            continue
        families = kind.families.nonzero()[:, 0].numpy()
        for family in sorted(rng.permutation(families)[:_FAMILIES].tolist()):
            yield from _members(found, kind, family, analyses)


def _members(found: Families, kind: Kind, family: int, analyses: Mapping[str, Analysis]) -> Iterator[_Member]:
    places = range(int(found.offsets[family]), int(found.offsets[family + 1]))
    known = [place for place in places if found.runs[int(found.member_runs[place])] in analyses]
    apart = known if len(known) <= _MEMBERS else [known[0], known[-1]]
    for place in apart:
        run = found.runs[int(found.member_runs[place])]
        feature = int(found.member_features[place])
        yield _Member(kind_label(kind), family, int(found.sizes[family]), run, feature)


class _Contexts:
    """The contexts of a run's features as text."""

    def __init__(self, analysis: Analysis) -> None:
        files = analysis_files(analysis.folder)
        contexts = read_analysis(files.contexts, analysis.run_id)
        self._top = contexts.filter(compute.equal(contexts["kind"], "top"))
        tokens = read_analysis(files.tokens, analysis.run_id)
        self._strings = dict(zip(tokens["token"].to_pylist(), tokens["string"].to_pylist(), strict=True))

    def of(self, feature: int) -> list[dict[str, Any]]:
        """The strongest contexts of a feature, split at the token on which it fires."""
        rows = self._top.filter(compute.equal(self._top["feature"], feature)).sort_by("rank")
        return [self._split(row) for row in rows.slice(0, _CONTEXTS).to_pylist()]

    def _split(self, row: Mapping[str, Any]) -> dict[str, Any]:
        words, at = [self._strings.get(token, "") for token in row["tokens"]], row["at"]
        parts = {"before": words[:at], "token": words[at : at + 1], "after": words[at + 1 :]}
        texts = {name: "".join(part) for name, part in parts.items()}
        return {"rank": row["rank"], "activation": row["activation"], **texts}


def _rows(one: _Member, contexts: _Contexts) -> list[dict[str, Any]]:
    return [{**one._asdict(), **context} for context in contexts.of(one.feature)]


def _page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kinds, families, members and contexts as nested Markdown; «» around the token."""
    lines = ["# Families with their strongest contexts", ""]
    lines += [f"Random families of each kind, at most {_FAMILIES}; at most {_MEMBERS} members of each."]
    kind = family = member = None
    for row in rows:
        if row["kind"] != kind:
            kind, family, member = row["kind"], None, None
            lines += ["", f"## {inline(kind)}"]
        if row["family"] != family:
            family, member = row["family"], None
            lines += ["", f"Family {family}, in {row['runs']} runs"]
        if (row["run"], row["feature"]) != member:
            member = (row["run"], row["feature"])
            lines += [f"- {inline(row['run'])}, feature {row['feature']}"]
        text = f"{row['before']}«{row['token']}»{row['after']}"
        lines.append(f"  - {row['activation']:.2f} {inline(text)}")
    return "\n".join([*lines, ""])
