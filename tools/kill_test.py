"""Kill a fused sweep at random moments, launch it again each time, and compare it with an undisturbed one.

    python tools/kill_test.py --kills 30 --seed 0 --launcher local

Eight runs on the bundled model (four architectures x two seeds) form one group, or four parts of it in two
worker processes, with as many threads as the machine gives them. Every other kill hits the command alone and
leaves its workers to find that out. After every SIGKILL all files
under their final names must be readable. When the sweep is done, no half-written file may be left, weights
must equal the undisturbed sweep's bit for bit, and every point of the history must be there once. A sweep
that ends before the last kill is deleted and started again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sae_sweep.saes import load_sae

WORDS = [
    *("model=gpt2-pico", "dataset=stdlib_docs", "layer=2", "dictionary=4", "batch=512", "tracking=none"),
    *("architecture=topk,batchtopk,jumprelu,relu", "seed=42,49", "activations.buffer_tokens=16_384"),
    *("evaluation.tokens=2_048", "launcher.checkpoint_every_min=0.03", "tracking.log_every=10"),
]


LAUNCHERS = {
    "inprocess": [],
    "local": ["launcher=local", "launcher.workers=2", "launcher.max_group=2"],
}
_WORKERS_NOTICE_S = 60.0
"""Longest time in which the workers of a killed command save and end."""


def start(folder: Path, sweep: str, keys: argparse.Namespace) -> subprocess.Popen[bytes]:
    python = [sys.executable, *(["-O"] if keys.optimise else [])]
    words = [*WORDS, *LAUNCHERS[keys.launcher], f"tokens={keys.tokens}", f"sweep={sweep}"]
    log = (folder / f"{sweep}.log").open("ab")
    command = [*python, "-m", "sae_sweep", *words]
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill_after(process: subprocess.Popen[bytes], seconds: float, *, alone: bool) -> bool:
    """Kill the sweep after `seconds`, with its workers or `alone`; return False if it ended before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        wait_for_workers(process.pid)
        return True
    return False


def wait_for_workers(session: int) -> None:
    """Wait until no process of a killed command is left; none may outlive it for long."""
    until = time.monotonic() + _WORKERS_NOTICE_S
    while any(_session(path) == session for path in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < until, "workers go on without their command"
        time.sleep(0.2)


def _session(process: Path) -> int | None:
    """Session of a process that runs; None if it is gone, or a zombie."""
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def check_files(sweep: Path) -> None:
    """Check that every file under its final name is complete."""
    for path in sweep.rglob("*.json"):
        if not path.name.startswith(".") and not any(part.startswith(".") for part in path.parts):
            json.loads(path.read_text())
    for folder in sweep.glob("*/sae"):
        load_sae(folder)


def check_result(sweep: Path, undisturbed: Path) -> None:
    """Check that weights and history equal the undisturbed sweep's, and that nothing is half-written."""
    left = [path for path in sweep.rglob(".*") if path.name != ".lock"]
    assert not left, f"half-written: {left}"
    assert not list(sweep.glob("*/checkpoint")), "a finished run still has its checkpoint"
    states = {json.loads(path.read_text())["state"] for path in sweep.glob("*/status.json")}
    assert states == {"done"}, states
    names = sorted(path.parent.name for path in undisturbed.glob("*/sae"))
    assert names == sorted(path.parent.name for path in sweep.glob("*/sae"))
    for name in names:
        ours, theirs = (load_sae(folder / name / "sae").state_dict() for folder in (sweep, undisturbed))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), f"{name}: weights differ"
        assert points(sweep / name) == points(undisturbed / name), f"{name}: history differs"


def points(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [(line["tokens"], line["loss"]) for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=100_000, help="budget of each run")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="inprocess")
    parser.add_argument("--optimise", action="store_true", help="run the sweeps as python -O")
    keys = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-test-"))
    began = time.monotonic()
    assert start(folder, "undisturbed", keys).wait() == 0, f"see {folder}/undisturbed.log"
    whole_s = time.monotonic() - began
    print(f"undisturbed: {whole_s:.0f} s", flush=True)
    moments = random.Random(keys.seed)
    kills = launches = sweeps = 0
    cut, undisturbed = folder / "multirun" / "cut", folder / "multirun" / "undisturbed"
    while kills < keys.kills:
        process = start(folder, "cut", keys)
        launches += 1
        after_s = moments.uniform(0.0, 0.5 * whole_s)
        if kill_after(process, after_s, alone=kills % 2 == 1):
            kills += 1
            done = len(list(cut.glob("*/sae")))
            print(f"kill {kills}: after {after_s:.1f} s, {done} of 8 runs had ended", flush=True)
            check_files(cut)
            continue
        assert process.returncode == 0, f"see {folder}/cut.log"
        check_result(cut, undisturbed)
        sweeps += 1
        shutil.rmtree(cut)
    assert start(folder, "cut", keys).wait() == 0, f"see {folder}/cut.log"
    check_result(cut, undisturbed)
    print(
        f"{kills} kills in {sweeps + 1} sweeps of 8 runs, {launches + 1} launches: "
        "weights and history equal the undisturbed sweep's, nothing half-written"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
