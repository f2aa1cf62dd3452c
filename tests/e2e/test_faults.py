"""Mistakes of ours and of the disk, in one run of a sweep each: the other runs are done."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import RunConfig
from sae_sweep.launch import finish, group
from sae_sweep.launch.finish import Evaluator
from sae_sweep.saes import Learner
from sae_sweep.tracking.sinks import RunSink
from sae_sweep.training import trainee
from tests.conftest import Cli

GOOD = 20
PLACES: list[tuple[Any, str]] = [
    (Learner, "step"),
    (Learner, "__init__"),
    (RunSink, "scalars"),
    (RunSink, "rewind"),
    (trainee, "save_checkpoint"),
    (Evaluator, "evaluate"),
    (finish, "save_sae"),
    (finish, "write_features"),
    (finish, "run_figures"),
    (RunSink, "histogram"),
    (RunSink, "artifact"),
    (finish, "set_state"),
    (group, "open_sink"),
    (group, "set_state"),
]
"""What breaks in the run of seed 1, 2, 3, ..."""


def _seed(arg: Any) -> int | None:
    """The seed of the run that an argument belongs to."""
    config = getattr(arg, "_config", getattr(arg, "config", arg))
    if isinstance(config, RunConfig):
        return config.seed
    path = arg if isinstance(arg, Path) else getattr(arg, "_root", getattr(arg, "root", ""))
    found = re.search(r"_s(\d+)_", str(path))
    return int(found[1]) if found else None


def break_for(patch: pytest.MonkeyPatch, owner: Any, name: str, seed: int) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **keys: Any) -> Any:
        if any(_seed(arg) == seed for arg in args):
            return [][0]
        return real(*args, **keys)

    patch.setattr(owner, name, call)


@pytest.mark.slow(reason="a sweep of sixteen runs, fourteen of which break")
@pytest.mark.usefixtures("without_figures")
def test_every_mistake_fails_its_own_run(cli: Cli, small: list[str]) -> None:
    seeds = [*range(1, len(PLACES) + 1), GOOD, GOOD + 1]
    words = [*small, "tracking=none", "sweep=x", f"seed={','.join(map(str, seeds))}"]
    with pytest.MonkeyPatch.context() as patch:
        for seed, (owner, name) in enumerate(PLACES, 1):
            break_for(patch, owner, name, seed)
        break_for(patch, RunSink, "finish", GOOD + 1)  # everything is written by then
        result = cli(*words)
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    assert re.search(r"failed: .* and \d+ more \(see .*train\.log\)", result.err)  # one cause, one line
    for seed in seeds:
        (run,) = Path("multirun/x").glob(f"*_s{seed}_*")
        status = json.loads((run / "status.json").read_text())
        log = (run / "train.log").read_text()
        if seed >= GOOD:
            assert status["state"] == "done"
        else:
            assert status["state"] == "failed", PLACES[seed - 1]
            assert status["error"].startswith("IndexError: list index out of range (traceback in train.log)")
            assert run.name in result.err
        assert ("Traceback (most recent call last)" in log) == (seed != GOOD)
    again = cli(*words)
    assert again.code == 0, again.err
    assert "16 runs, 2 already done" in again.err
    assert len(list(Path("multirun/x").glob("*/sae/cfg.json"))) == len(seeds)
