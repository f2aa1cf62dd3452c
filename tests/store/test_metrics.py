"""`metrics.json`: numbers or null, the keys that gave them, and a checksum."""

import math
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.store import RunFolder, read_metrics, write_json, write_metrics
from tests.store.damage import check_reader, check_without_checksum

VALUES = {"init_match": 0.25, "l0": 16.0, "ce_recovered_zero": math.nan, "tokens": 100}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    write_metrics(RunFolder(tmp_path), "abc", VALUES, {"tokens": 200, "dense": 0.1})
    return RunFolder(tmp_path)


def test_metrics_come_back_with_the_keys_that_gave_them(folder: RunFolder) -> None:
    metrics = read_metrics(folder, "abc")
    assert metrics.values == {**VALUES, "ce_recovered_zero": None}
    assert metrics.init_match == 0.25
    assert metrics.evaluation == {"tokens": 200, "dense": 0.1}


def test_metrics_of_an_earlier_version_name_no_keys(folder: RunFolder) -> None:
    write_json(folder.metrics, {"init_match": 0.5, "l0": 1})
    assert read_metrics(folder, "abc").evaluation == {}


def test_no_damage_is_believed(folder: RunFolder) -> None:
    check_reader(folder.metrics, lambda: read_metrics(folder, "abc"))


def test_changed_values_are_read_or_refused(folder: RunFolder) -> None:
    check_without_checksum(folder.metrics, lambda: read_metrics(folder, "abc"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "init_match=None: must be a finite number"),
        ({"init_match": "0.5"}, "metrics.init_match='0.5': must be a finite number or null"),
        ({"init_match": 0.5, "l0": [1]}, r"metrics.l0=[1]: must be a finite number or null"),
        ({"init_match": 0.5, "evaluation": 1}, "evaluation=1: must be a mapping"),
    ],
)
def test_each_wrong_value_is_named_with_file_and_remedy(
    folder: RunFolder, record: dict[str, object], words: str
) -> None:
    write_json(folder.metrics, record)
    with pytest.raises(SaeSweepError) as refused:
        read_metrics(folder, "abc")
    assert f"cannot read {folder.metrics}: {words}; launch the sweep again" in str(refused.value)


def test_metrics_of_another_run_are_refused(folder: RunFolder) -> None:
    with pytest.raises(SaeSweepError, match=r"metrics\.json: it is of run abc, not xyz; launch the"):
        read_metrics(folder, "xyz")
