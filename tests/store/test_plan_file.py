"""`plan.json`: checked names and types, and a checksum."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import ConfigError, RunConfig, SaeSweepError, TopKConfig
from sae_sweep.store import PlannedRun, SweepFolder, planned_run, read_plan, write_json, write_record
from tests.store.damage import check_reader, check_without_checksum

NAMES = ("..", ".", "", "a/b", "/etc", "../x", ".hidden", "a\nb", "\x1b[2J", "\x00", "a/", "\ud800")

CONFIG = RunConfig(architecture=TopKConfig())


def record(name: str = "run") -> dict[str, Any]:
    return {"name": name, "id": f"id-{name}", "config": CONFIG.as_dict()}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path)
    runs = [record("one"), {**record("two"), "group": "g", "grids": ["row"], "fingerprints": {"corpus": "c"}}]
    write_record(folder.plan, {"sweep": "mine", "union": None, "study": {"paper": "x"}, "runs": runs})
    return folder


def test_a_plan_comes_back(folder: SweepFolder) -> None:
    plan = read_plan(folder)
    assert [run["name"] for run in plan["runs"]] == ["one", "two"]
    assert (plan["sweep"], plan["study"]) == ("mine", {"paper": "x"})
    assert planned_run(plan["runs"][0], folder).config == CONFIG


def test_no_damage_is_believed(folder: SweepFolder) -> None:
    check_reader(folder.plan, lambda: read_plan(folder))


def test_a_plan_of_an_earlier_version_is_read_or_refused(folder: SweepFolder) -> None:
    write_json(folder.plan, {"sweep": "mine", "union": None, "runs": [{**record(), "config": {"tokens": 1}}]})
    check_without_checksum(folder.plan, lambda: read_plan(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_of_the_sweep_is_refused(folder: SweepFolder, name: str) -> None:
    write_json(folder.plan, {"sweep": "mine", "runs": [record(name)]})
    with pytest.raises(SaeSweepError, match=r"plan\.json: name=.*: it must be a plain name; move it away"):
        read_plan(folder)
    run = {**record(name), "group": "g", "grids": [], "fingerprints": {}}
    with pytest.raises(ConfigError, match="must be a plain name"):
        PlannedRun.from_record(run, folder)


def test_two_runs_of_one_name_are_refused(folder: SweepFolder) -> None:
    write_json(folder.plan, {"sweep": "mine", "runs": [record(), {**record(), "id": "other"}]})
    with pytest.raises(SaeSweepError, match="two runs are called run"):
        read_plan(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": "abc"}, "tokens='abc': must be a whole number"),
        ({"architecture": {"kind": "topk", "k": None}}, "architecture.k=None: must be a whole number"),
        ({"architecture": {"kind": "topk", "k": [16]}}, r"architecture.k=[16]: must be a whole number"),
        ({"architecture": {"kind": ["topk"]}}, "architecture.kind=['topk']: must be text"),
        ({"architecture": []}, "architecture=[]: must be a mapping"),
        ({"layer": True}, "layer=True: must be a whole number"),
        ({"batch": 0}, "batch=0: must be at least 2"),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_a_damaged_config_concerns_its_run(folder: SweepFolder, change: dict[str, Any], words: str) -> None:
    run = record()
    run["config"].update(change)
    write_json(folder.plan, {"sweep": "mine", "runs": [run]})
    (read,) = read_plan(folder)["runs"]
    with pytest.raises(SaeSweepError) as refused:
        planned_run(read, folder)
    assert f"cannot read {folder.plan}: the config of run: {words}" in str(refused.value)


def test_the_checksum_is_part_of_the_file_and_no_key_of_the_plan(folder: SweepFolder) -> None:
    assert "checksum" in json.loads(folder.plan.read_text())
    assert "checksum" not in read_plan(folder)
