"""`task=status` on artificial folders: every state, ages, speeds, and its imports."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.report import describe_status
from sae_sweep.store import RunFolder, SweepFolder, hold, write_json
from sae_sweep.tasks.status import progress
from tests.conftest import Cli

NOW = 1_760_000_000.0
BUDGET = 1_000_000


def moment(seconds_ago: float, now: float = NOW) -> str:
    at = datetime.datetime.fromtimestamp(now - seconds_ago, datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S%z")


def write_status(run: RunFolder, state: str, seconds_ago: float, now: float = NOW, **details: Any) -> None:
    times = {state: moment(seconds_ago, now)}
    write_json(run.status, {"state": state, "run_id": f"id-{run.root.name}", "times": times, **details})


def log_points(run: RunFolder, *points: tuple[float, int]) -> None:
    """Write a history of points, given as (seconds ago, tokens)."""
    lines = [json.dumps({"tokens": tokens, "time": NOW - ago, "loss": 1.0}) + "\n" for ago, tokens in points]
    run.history.write_text("".join(lines))


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "multirun" / "study")
    names = ("finished", "training", "broken", "cut", "waiting", "queued")
    runs = [{"name": name, "id": f"id-{name}", "config": {"tokens": BUDGET}} for name in names]
    write_json(folder.plan, {"sweep": "study", "runs": runs})
    return folder


@pytest.fixture
def every_state(sweep: SweepFolder) -> Iterator[SweepFolder]:
    """A sweep with a run in every state; the locks of active runs are held."""
    write_status(sweep.run("finished"), "done", 7200, tokens=999_936, seconds=500.0)
    write_status(sweep.run("training"), "running", 180)
    # 50k tokens from an earlier launch; since this one 1,000 tokens per second
    log_points(sweep.run("training"), (9000, 50_000), (100, 60_000), (50, 110_000), (10, 150_000))
    write_status(sweep.run("broken"), "failed", 60, error="the loss is nan\nat step 3", tokens=4096)
    write_status(sweep.run("cut"), "running", 259_200)
    log_points(sweep.run("cut"), (259_000, 20_000))
    write_status(sweep.run("queued"), "pending", 180)
    with ExitStack() as stack:
        for name in ("training", "queued"):
            stack.enter_context(hold(sweep.run(name)))
        with hold(sweep.run("cut")):
            pass  # its process is gone, its lock file is not
        yield sweep


def test_every_state_is_told_from_the_files(every_state: SweepFolder) -> None:
    document = progress(every_state, NOW)
    runs = {run["name"]: run for run in document["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        "finished": "done",
        "training": "running",
        "broken": "failed",
        "cut": "interrupted",
        "waiting": "pending",
        "queued": "pending",
    }
    assert document["counts"] == {
        "done": 1,
        "running": 1,
        "failed": 1,
        "interrupted": 1,
        "pending": 2,
        "damaged": 0,
    }
    assert [run["age_s"] for run in runs.values()] == [7200, 180, 60, 259_200, None, 180]
    assert [run["tokens"] for run in runs.values()] == [999_936, 150_000, 4096, 20_000, 0, 0]
    assert runs["finished"]["id"] == "id-finished"


def test_speed_is_that_of_this_launch(every_state: SweepFolder) -> None:
    runs = {run["name"]: run for run in progress(every_state, NOW)["runs"]}
    assert runs["training"]["tokens_per_s"] == 1000
    assert runs["training"]["eta_s"] == 850
    assert runs["finished"]["tokens_per_s"] == pytest.approx(1999.9)
    assert runs["finished"]["eta_s"] is None
    assert runs["cut"]["eta_s"] is None


def test_text_shows_ages_errors_and_totals(every_state: SweepFolder) -> None:
    text = describe_status(progress(every_state, NOW), width=100)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["finished"][1:] == ["done", "2", "h", "1,000k", "of", "1M", "2k", "-"]
    assert lines["training"][1:] == ["running", "3", "min", "150k", "of", "1M", "1k", "14", "min"]
    assert lines["cut"][1:4] == ["interrupted", "3", "d"]
    assert lines["waiting"][1:3] == ["pending", "-"]
    assert "failed: broken: the loss is nan\n" in text
    assert f"see {every_state.run('broken').log}" in text
    assert "run the command that started it again to resume it" in text
    assert text.splitlines()[-1] == "1 done, 1 running, 1 failed, 1 interrupted, 2 pending"


def test_one_cause_is_said_once_with_short_names_and_a_path_that_can_be_pasted(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "a b")
    names = [f"gpt2_L8_owt_topk_x16_k16_s{seed}" for seed in range(6)]
    runs = [{"name": name, "id": f"id-{name}", "config": {"tokens": BUDGET}} for name in names]
    write_json(folder.plan, {"sweep": "study", "runs": runs})
    for name in names[:5]:
        write_status(folder.run(name), "failed", 60, error="the text cannot be read")
    write_status(folder.run(names[5]), "failed", 60, error="its loss is nan")
    document = progress(folder, NOW)
    assert [run["short"] for run in document["runs"]] == [f"s{seed}" for seed in range(6)]
    text = describe_status(document, width=100)
    assert "failed: s0, s1, s2 and 2 more: the text cannot be read\n" in text
    assert text.count("the text cannot be read") == 1
    assert "failed: s5: its loss is nan\n" in text
    assert f"  see '{folder.run(names[0]).log}'\n" in text
    assert text.splitlines()[0] == f"'{folder.root}'"
    assert "gpt2" not in text.replace(str(folder.root), "").replace(names[0], "").replace(names[5], "")


@pytest.mark.parametrize("width", [40, 80])
def test_seventy_three_runs_fit_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    folder = SweepFolder(tmp_path)
    names = [f"gpt2-small_L{layer}_owt_topk_x16_k16_s{seed}" for layer in range(12) for seed in range(6)]
    runs = [{"name": name, "id": "id", "config": {"tokens": 100_000_000}} for name in [*names, "last"]]
    write_json(folder.plan, {"sweep": "study", "runs": runs})
    lines = describe_status(progress(folder, NOW), width=width).splitlines()
    assert len(lines) >= 73
    assert all(len(line) <= width for line in lines[1:])


def test_mixed_runs_are_marked_with_the_steps_of_the_changes(every_state: SweepFolder) -> None:
    changes = [
        {"step": 7, "attention": ["sdpa", "eager"], "kernels": ["triton", "cpu"]},
        {"step": 90, "lm_dtype": ["bfloat16", "float32"]},
    ]
    write_status(every_state.run("cut"), "running", 259_200, mixed=changes)
    every_state.run("queued").status.write_text("{")
    document = json.loads(json.dumps(progress(every_state, NOW)))
    assert [run["mixed"] for run in document["runs"]] == [[], [], [], changes, [], []]
    text = describe_status(document, width=100)
    assert {line.split()[0]: line.split()[1] for line in text.splitlines()[3:9]} == {
        "finished": "done",
        "training": "running",
        "broken": "failed",
        "cut": "interrupted†",
        "waiting": "pending",
        "queued": "damaged",
    }
    assert "\n\n† mixed: part of the run was trained with other numerics (device, dtype" in text
    assert "\n  cut: from step 7 on other attention, kernels; from step 90 on other lm_dtype\n" in text


def test_other_runs_have_no_mark(every_state: SweepFolder) -> None:
    text = describe_status(progress(every_state, NOW))
    assert "†" not in text
    assert "mixed" not in text


@pytest.mark.parametrize("changes", [[{}], [{"step": [1]}], [{"attention": None}]])
def test_an_odd_record_of_changes_is_shown_as_it_is(
    sweep: SweepFolder, changes: list[dict[str, Any]]
) -> None:
    write_status(sweep.run("finished"), "done", 5, mixed=changes)
    document = progress(sweep, NOW)
    assert document["runs"][0]["mixed"] == changes
    assert "done†" in describe_status(document)


def test_on_a_narrow_terminal_names_keep_what_tells_them_apart(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    names = [f"gpt2-small_L8_openwebtext_batchtopk_x16_k16_s{seed}_study_shared-false" for seed in (42, 49)]
    runs = [{"name": name, "id": "id", "config": {"tokens": BUDGET}} for name in names]
    write_json(folder.plan, {"sweep": "study", "runs": runs})
    lines = describe_status(progress(folder, NOW), width=70).splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["s42", "s49"]
    assert all(len(line) <= 70 for line in lines[1:])


def test_a_look_leaves_the_files_and_the_locks_as_they_are(every_state: SweepFolder) -> None:
    history = every_state.run("cut").history
    with history.open("a") as file:
        file.write('{"tokens": 30')  # torn: the machine went down
    before = {path: path.read_bytes() for path in every_state.root.rglob("*") if path.is_file()}
    assert progress(every_state, NOW)["runs"][3]["tokens"] == 20_000
    assert {path: path.read_bytes() for path in every_state.root.rglob("*") if path.is_file()} == before
    with hold(every_state.run("cut")):
        pass


def test_a_long_history_is_read_from_its_end(sweep: SweepFolder) -> None:
    run = sweep.run("training")
    write_status(run, "running", 100_000)
    log_points(run, *((20_000 - i, 10 * i) for i in range(1, 20_000)))
    with hold(run):
        (found,) = (run for run in progress(sweep, NOW)["runs"] if run["name"] == "training")
    assert found["tokens"] == 199_990
    assert found["tokens_per_s"] == 10


def test_the_command_prints_text_or_json_and_failures_are_no_failure_of_it(
    cli: Cli, sweep: SweepFolder
) -> None:
    write_status(sweep.run("broken"), "failed", 120, now=time.time(), error="no")
    result = cli("task=status", "sweep=study")
    assert result.code == 0
    assert result.out.rstrip().endswith("1 failed, 5 pending")
    result = cli("task=status", "experiment=quickstart", "sweep=study", "format=json")
    document = json.loads(result.out)
    assert document["sweep"] == "study"
    assert document["counts"]["failed"] == 1
    assert len(document["runs"]) == 6


def test_the_sweep_defaults_to_the_experiment(cli: Cli, sweep: SweepFolder) -> None:
    sweep.root.rename(sweep.root.parent / "quickstart")
    assert "6 pending" in cli("task=status", "experiment=quickstart").out


@pytest.mark.parametrize("task", ["status", "match"])
def test_a_sweep_that_is_not_there_is_one_line_that_names_those_that_are(
    cli: Cli, sweep: SweepFolder, task: str
) -> None:
    for code, words in ((2, []), (1, ["sweep=nowhere"])):
        result = cli(f"task={task}", *words)
        assert result.code == code
        assert "there is study" in result.err
        assert len(result.err.splitlines()) == 1
        assert result.out == ""


def test_it_needs_no_torch_and_reads_no_text(sweep: SweepFolder, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sae_sweep.__main__ import main\n"
        "sys.argv = ['sae_sweep', 'task=status', 'sweep=study', 'dataset=stdlib_docs', 'paths.cache=cache']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'lightning', 'wandb', 'datasets', 'transformer_lens', 'matplotlib', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "6 pending" in done.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("left", ["", '{"tokens": 1, "time": 1}\n'])
def test_a_history_shorter_than_at_the_checkpoint_is_damage(every_state: SweepFolder, left: str) -> None:
    run = every_state.run("cut")
    progress_text = json.dumps({"history": {"bytes": run.history.stat().st_size}})
    header = json.dumps({"__metadata__": {"progress": progress_text}}).encode()
    run.checkpoint.mkdir(parents=True)
    (run.checkpoint / "state.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert {one["name"]: one for one in progress(every_state, NOW)["runs"]}["cut"]["state"] == "interrupted"
    run.history.write_text(left)
    shown = {one["name"]: one for one in progress(every_state, NOW)["runs"]}["cut"]
    assert shown["state"] == "damaged"
    assert "history.jsonl is damaged" in shown["error"]
