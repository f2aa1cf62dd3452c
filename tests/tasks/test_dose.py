"""Ladders of a sweep: which runs belong to one, and what is written of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import csv

from sae_sweep.analysis import ComparisonEntry, compare
from sae_sweep.config import (
    DatasetConfig,
    EmbeddedDataset,
    FilesDataset,
    MixDataset,
    RunConfig,
    TopKConfig,
    build,
)
from sae_sweep.report.dose import Ladder, found_again, sentence, write_dose_response
from sae_sweep.report.page.sections import Section
from sae_sweep.store import read_record
from sae_sweep.tasks.dose import find_ladders
from sae_sweep.tasks.finished import Finished

DOCS, CODE = EmbeddedDataset(name="stdlib_docs"), EmbeddedDataset(name="stdlib_code")
FEATURES = 24


def _mix(docs: float) -> MixDataset:
    weights = {"stdlib_docs": docs, "stdlib_code": 1 - docs}
    return MixDataset(name=f"mix {docs}", weights=weights, parts={"stdlib_docs": DOCS, "stdlib_code": CODE})


def _run(dataset: DatasetConfig, seed: int, docs: int, init_match: float = 0.0, **keys: Any) -> Finished:
    """A run whose first `docs` features are those of one text, and the rest those of the other."""
    decoder = torch.eye(2 * FEATURES)
    rows = torch.cat([decoder[:docs], decoder[FEATURES : 2 * FEATURES - docs]])
    name = f"{dataset.name} {seed} {keys}"
    swept = {"dataset": dataset.name, "seed": seed, **keys}
    config = RunConfig(dataset=dataset, seed=seed, architecture=TopKConfig())
    return Finished(None, config, ComparisonEntry(name, swept, rows, init_match))  # type: ignore[arg-type]


def _ladder(init_match: float = 0.0, **keys: Any) -> list[Finished]:
    """At half of the text, three quarters of its features are found; the ends are named in both ways."""
    texts = [(DOCS, 24), (_mix(0.5), 18), (_mix(0.0), 0)]
    return [_run(text, seed, docs, init_match, **keys) for text, docs in texts for seed in (1, 2)]


def _find(found: list[Finished]) -> list[Ladder]:
    return find_ladders(found, compare([one.entry for one in found]))


def test_a_ladder_is_found_and_its_features_are_sought_by_share() -> None:
    (ladder,) = _find(_ladder())
    assert ladder.label == ""
    assert ladder.texts == ("stdlib_code", "stdlib_docs")
    assert len(ladder.runs) == 6
    found = {(ladder.texts[one.text], one.share): one.ratio for one in ladder.points if one.features == "all"}
    assert found == {
        ("stdlib_docs", 1): 1,
        ("stdlib_docs", 0.5): 0.75,
        ("stdlib_docs", 0): 0,
        ("stdlib_code", 1): 1,
        ("stdlib_code", 0.5): 0.25,
        ("stdlib_code", 0): 0,
    }
    numbers = found_again([ladder, ladder._replace(label="k=1")])
    assert numbers["stdlib_docs/0.5"] == numbers["k=1/stdlib_docs/0.5"] == 0.75
    assert len(numbers) == 12
    assert sentence(ladder) == (
        "Of the features of SAEs that read stdlib_code alone, SAEs of another seed have, by the share of "
        "stdlib_code in what these read: 0.0% at 0%, 25.0% at 50%, 100.0% at 100%. "
        "Of the features of SAEs that read stdlib_docs alone, SAEs of another seed have, by the share of "
        "stdlib_docs in what these read: 0.0% at 0%, 75.0% at 50%, 100.0% at 100%."
    )


def test_runs_that_differ_in_more_are_ladders_of_their_own() -> None:
    ladders = _find([*_ladder(k=16), *_ladder(k=32)[:-2], _run(FilesDataset(path="a"), 1, 0, k=16)])
    assert [ladder.label for ladder in ladders] == [""]  # k=32 lacks one text alone
    assert [ladder.label for ladder in _find([*_ladder(k=16), *_ladder(k=32)])] == ["k=16", "k=32"]


@pytest.mark.parametrize("some", [slice(2), slice(4), slice(0, 6, 2)])
def test_without_both_ends_or_two_seeds_there_is_none(some: slice) -> None:
    assert _find(_ladder()[some]) == []


def test_files_and_the_section_are_written_and_those_of_another_sweep_removed(tmp_path: Path) -> None:
    table = write_dose_response(tmp_path / "dose", _find(_ladder()), 0.7)
    assert table is not None
    assert csv.read_csv(table).num_rows == 12
    section: Section = build(Section, read_record(tmp_path / "dose" / "section.json", ""))
    assert set(section.figures) == {"curve.png"}
    assert all((tmp_path / "dose" / name).exists() for name in ("curve.png", "curve.svg", "curve.parquet"))
    assert len(section.runs) == 6
    rows = {(row[0], row[1], row[2]): row[3:5] for row in section.tables[0].rows}
    assert rows["stdlib_docs", "all", 50.0] == (48, 75)
    assert "layer 8; topk; k 16" in section.figures["curve.png"]
    assert "seeds 1 and 2" in section.figures["curve.png"]
    assert write_dose_response(tmp_path / "dose", [], 0.7) is None
    assert not (tmp_path / "dose").exists()


def test_nothing_is_concluded_from_undertrained_runs(tmp_path: Path) -> None:
    mixed = [*_ladder()[:2], *_ladder(init_match=0.5)[2:4], *_ladder()[4:]]
    (in_part,), (ladder,) = _find(mixed), _find(_ladder(init_match=0.5))
    assert sentence(in_part) == sentence(ladder)
    assert sentence(ladder) == (
        "Nothing is concluded about features of stdlib_code: runs still match their start. "
        "Nothing is concluded about features of stdlib_docs: runs still match their start."
    )
    assert found_again([ladder]) == {}
    write_dose_response(tmp_path / "dose", [ladder, ladder._replace(label="k=1")], 0.7)
    section: Section = build(Section, read_record(tmp_path / "dose" / "section.json", ""))
    assert all("still matches its start" in str(row[-1]) for table in section.tables for row in table.rows)
    assert list(section.figures) == ["curve_1.png", "curve_2.png"]
