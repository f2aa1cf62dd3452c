"""`plan.json` grows with its sweep and refuses the runs of another."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from sae_sweep.config import (
    ActivationsConfig,
    CommandConfig,
    EmbeddedDataset,
    FilesDataset,
    PathsConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.store import read_json


def plan(
    folder: Path, seeds: Sequence[int], text: str = "a", grids: Sequence[str] = (), union: str | None = None
) -> Plan:
    baseline = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset())
    command = CommandConfig(sweep="mine", paths=PathsConfig(output=str(folder)))
    configs = [dataclasses.replace(baseline, seed=seed) for seed in seeds]
    wanted = [WantedRun(config, baseline, tuple(grids)) for config in configs]
    return make_plan(Request(command, wanted, union), lambda config: {"corpus": text})


def launch(one: Plan) -> list[int]:
    """Check and save the plan as a launch does; returns the seeds on disk."""
    one.refuse_another()
    one.save()
    return [run["config"]["seed"] for run in read_json(one.folder.plan)["runs"]]


def test_equal_runs_merge_and_keep_the_names_of_their_grids_in_order(tmp_path: Path) -> None:
    config = plan(tmp_path, [1]).runs[0].config
    wanted = [WantedRun(config, config, names) for names in [("b",), ("a", "b"), ("c",)]]
    merged = make_plan(Request(CommandConfig(sweep="mine"), wanted), lambda _: {})
    assert [run.grids for run in merged.runs] == [("b", "a", "c")]


def test_a_narrowed_command_keeps_what_is_known_and_a_wider_one_adds(tmp_path: Path) -> None:
    assert launch(plan(tmp_path, [2])) == [2]
    assert launch(plan(tmp_path, [1, 2, 3])) == [2, 1, 3]
    assert launch(plan(tmp_path, [3, 1])) == [2, 1, 3]
    assert launch(plan(tmp_path, [1, 2, 3])) == [2, 1, 3]


def test_names_of_grids_are_kept(tmp_path: Path) -> None:
    launch(plan(tmp_path, [1], grids=["row 1"]))
    launch(plan(tmp_path, [1], grids=["row 2", "row 1"]))
    assert read_json(tmp_path / "mine" / "plan.json")["runs"][0]["grids"] == ["row 1", "row 2"]


def test_two_selections_of_one_union_share_a_folder(tmp_path: Path) -> None:
    assert launch(plan(tmp_path, [1], union="all seeds")) == [1]
    assert launch(plan(tmp_path, [2], union="all seeds")) == [1, 2]
    with pytest.raises(SaeSweepError, match="holds another plan"):
        launch(plan(tmp_path, [3], union="all seeds, other tokens"))


def test_another_plan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    launch(plan(tmp_path, [1, 2, 3]))
    before = (tmp_path / "mine" / "plan.json").read_bytes()
    with pytest.raises(SaeSweepError) as caught:
        launch(plan(tmp_path, [3, 4]))
    assert str(caught.value) == (
        f"{tmp_path}/mine holds another plan: 2 of its 3 runs are not in this command "
        "(gpt2-small_L8_stdlib_docs_topk_x16_k16_s1 is nearest: seed is 1 there and 4 here); "
        "choose sweep=NAME, or move the folder away"
    )
    assert (tmp_path / "mine" / "plan.json").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".lock", "plan.json"]


def test_the_same_names_with_other_text_are_told_apart(tmp_path: Path) -> None:
    launch(plan(tmp_path, [1, 2]))
    with pytest.raises(SaeSweepError, match=r"_s1 holds another run: its text is other; choose sweep=NAME"):
        launch(plan(tmp_path, [1], text="b"))


def test_a_dtype_that_auto_became_elsewhere_is_named_with_the_key_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_sweep.activations.device.fast_bfloat16", lambda _: True)
    launch(plan(tmp_path, [1]))
    monkeypatch.setattr("sae_sweep.activations.device.fast_bfloat16", lambda _: False)
    with pytest.raises(SaeSweepError) as refused:
        launch(plan(tmp_path, [1]))
    assert "model.dtype is bfloat16 there and float32 here" in str(refused.value)
    assert "model.dtype=bfloat16 goes on with it" in str(refused.value)


def test_a_run_keeps_the_name_that_its_sweep_first_gave_it(tmp_path: Path) -> None:
    command = CommandConfig(sweep="mine", paths=PathsConfig(output=str(tmp_path)))

    def called(label: str) -> Plan:
        config = RunConfig(architecture=TopKConfig(), dataset=FilesDataset(name=label, path="texts"))
        return make_plan(Request(command, [WantedRun(config, config)]), lambda _: {"corpus": "c"})

    first = called("mine")
    launch(first)
    again = called("yours")
    assert again.runs[0].run_id == first.runs[0].run_id
    assert again.runs[0].folder == first.runs[0].folder
    launch(again)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot read .*plan\.json: Expecting"),
        ("[]", r"cannot read .*plan\.json: it holds no mapping"),
        ('{"runs": [{}]}', r"cannot read .*plan\.json: .*plan\.runs\[0\]\.name is missing"),
        ('{"runs": 3}', r"cannot read .*plan\.json: .*plan\.runs=3: must be a list"),
    ],
)
def test_a_damaged_plan_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine" / "plan.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(SaeSweepError, match=message) as caught:
        launch(plan(tmp_path, [1]))
    assert "\n" not in str(caught.value)
    assert file.read_text() == content


def test_keys_that_make_no_other_run_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset())
    other = dataclasses.replace(config, activations=ActivationsConfig(lm_batch=32))
    command = CommandConfig(sweep="mine", paths=PathsConfig(output=str(tmp_path)))
    wanted = [WantedRun(config, config), WantedRun(other, config), WantedRun(config, config)]
    assert len(make_plan(Request(command, wanted), lambda _: {"corpus": "c"}).runs) == 1
    assert caplog.messages == [
        "runs that differ only in activations.lm_batch are one: that changes no weights"
    ]
