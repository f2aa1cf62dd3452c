"""The machine that breaks sweeps: its short form finds nothing, and it finds faults that are put in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "break_it.py"


def _python(*words: str, limit_s: float = 900.0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=limit_s
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed sweeps, made by the first test that needs them."""
    return tmp_path_factory.mktemp("world")


@pytest.mark.slow(reason="eighty trials on real sweeps, each of about a second")
@pytest.mark.parametrize(("trials", "optimise"), [(60, []), (20, ["--optimise"])], ids=["plain", "optimised"])
def test_the_short_form_ends_in_results_or_lines(
    world: Path, tmp_path: Path, trials: int, optimise: list[str]
) -> None:
    file = tmp_path / "done.json"
    words = ("--trials", str(trials), "--folder", str(world), "--json", str(file))
    ended = _python(str(SCRIPT), *words, *optimise)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    done = json.loads(file.read_text())["trials"]
    assert {one["outcome"] for one in done} <= {"right", "one line"}
    assert len(done) >= trials
    assert optimise or len({one["kind"] for one in done}) == 14


BROKEN = """
import ctypes, json, sys, time
from pathlib import Path
import break_it
from safetensors.torch import load_file
from trials import commands

world = Path(sys.argv[1])
break_it.run([], world, 1)
import sae_sweep.training.checkpoint as product
load = product.load_checkpoint

def believes(folder, *more):
    found = load(folder, *more)
    return found and found._replace(state=load_file(folder.checkpoint / "state.safetensors"))

def raises(*words):
    return [][0]

def crashes(*words):
    ctypes.string_at(0)

def hangs(*words):
    time.sleep(60)

def leaves(folder, *more):
    from sae_sweep.store.partial import partial_path

    partial_path(folder.root / "state.safetensors").touch()
    return load(folder, *more)

def forks(*words):
    import subprocess
    subprocess.Popen(["sleep", "60"])
    return load(*words)

commands.LIMIT_S = 3.0
outcomes = {}
for fault in (believes, raises, crashes, hangs, leaves, forks):
    product.load_checkpoint = fault
    done = break_it.run([break_it.Trial("checkpoint-load", seed) for seed in range(3)], world, 2)
    outcomes[fault.__name__] = [one.outcome for one in done]
sys.stdout.write(json.dumps(outcomes))
"""
"""Trials of products that load checkpoints in some wrong way."""

FOUND = {
    "believes": "silently wrong",
    "raises": "traceback",
    "crashes": "traceback",
    "hangs": "hang",
    "leaves": "litter",
    "forks": "litter",
}


@pytest.mark.slow(reason="makes real sweeps, and waits for one that hangs")
def test_faults_that_are_put_in_are_found(world: Path) -> None:
    ended = _python("-c", BROKEN, str(world))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert {fault: outcome for fault, outcome in FOUND.items() if outcome not in outcomes[fault]} == {}
