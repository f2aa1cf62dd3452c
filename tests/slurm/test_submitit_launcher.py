"""Hydra's submitit launcher as installed: one job per run, with a shared cache."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_sweep.activations.cache import inventory
from sae_sweep.saes import load_sae
from tests.conftest import Cli
from tests.slurm.cluster import Slurm, wait_for
from tests.slurm.test_slurm import finish, launch, states, statuses

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

pytestmark = pytest.mark.slow(
    reason="every job is a process that imports torch first, and a scheduler decides when it starts"
)
ON_SLURM = [
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.mem_gb=null",
]


@pytest.fixture
def words(small: list[str], tmp_path: Path) -> list[str]:
    return [*small, "tracking=none", "fuse=false", f"paths.cache={tmp_path / 'cache'}"]


def jobs_logs(folder: Path) -> Callable[[], str]:
    """Output of the jobs, which submitit writes beside the sweeps."""

    def read() -> str:
        logs = (folder / "multirun").rglob(".submitit/*/*.err")
        return "\n".join(f"{path}\n{path.read_text()[-4000:]}" for path in sorted(logs))

    return read


def each_run_was_a_job_and_the_cache_was_filled_once(folder: Path, sweep: str, said: str) -> None:
    logs = jobs_logs(folder)()
    runs = statuses(folder / "multirun" / sweep)
    assert states(folder / "multirun" / sweep) == ["done", "done"], said + logs
    assert len({status["pid"] for status in runs.values()}) == 2
    assert len(re.findall(r" caching 10,240 tokens", logs)) == 1
    assert re.search(r"LM: 1 pass, [\d,]+ tokens in [\d.]+ s, for 2 runs", said), said
    (stream,) = inventory(folder / "cache")
    assert stream.state == "complete"
    assert (folder / "multirun" / sweep / "analysis" / "matching" / "pairs.csv").exists()


def test_local_jobs_share_the_cache(cli: Cli, words: list[str], tmp_path: Path) -> None:
    grid = ["seed=1,2", "activations=cache", "sweep=own", "hydra/launcher=submitit_local"]
    result = cli(*words, *grid)
    assert result.code == 0, result.err + jobs_logs(tmp_path)()
    each_run_was_a_job_and_the_cache_was_filled_once(tmp_path, "own", result.err)


def test_jobs_of_slurm_share_the_cache(cli: Cli, slurm: Slurm, words: list[str], tmp_path: Path) -> None:
    grid = ["seed=1,2", "activations=cache"]
    result = cli(*words, *grid, "sweep=jobs", *ON_SLURM)
    assert result.code == 0, result.err + jobs_logs(tmp_path)()
    each_run_was_a_job_and_the_cache_was_filled_once(tmp_path, "jobs", result.err)

    assert cli(*words, "seed=1,2", "sweep=streamed").code == 0
    for run in (path.parent for path in (tmp_path / "multirun" / "jobs").glob("*/sae")):
        twin = load_sae(tmp_path / "multirun" / "streamed" / run.name).state_dict()
        for name, weight in load_sae(run).state_dict().items():
            assert torch.equal(weight, twin[name]), name


def test_a_requeued_job_goes_on_where_it_was(slurm: Slurm, words: list[str], tmp_path: Path) -> None:
    logs = jobs_logs(tmp_path)
    cut = tmp_path / "multirun" / "cut"
    process = launch([*words, "seed=1", "tokens=40_960", "sweep=cut", *ON_SLURM], tmp_path)
    wait_for(
        lambda: any(file.stat().st_size for file in cut.glob("*/history.jsonl")), "the first point", logs
    )
    (job,) = slurm("squeue", "-h", "-o", "%i").split()
    slurm("scancel", "--signal=USR2", job)
    wait_for(lambda: states(cut) == ["pending"], "the job to stop", logs)
    assert list(cut.glob("*/checkpoint/state.safetensors"))

    def runs_again() -> bool:
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return states(cut) != ["pending"]

    wait_for(runs_again, "the job to start again", logs)
    code, said = finish(process, tmp_path)
    assert code == 0, said + logs()
    assert states(cut) == ["done"]
    assert re.search(r"resumed at [\d,]+ tokens", logs())
    assert re.search(r"Restarts=1\b", slurm("scontrol", "show", "job", job))
    wait_for(lambda: not slurm("squeue", "-h").strip(), "the job's end")
