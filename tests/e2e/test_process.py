"""Checks that need a separate process: signals, exit codes, and imports."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sae_sweep.saes import load_sae
from tests.conftest import Cli


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sae_sweep", *words]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def logged(run: Path) -> list[int]:
    """Token counts at which metrics were logged."""
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [line["tokens"] for line in lines if "loss" in line]


def test_help_loads_neither_torch_nor_lightning() -> None:
    code = (
        "import sys\n"
        "from sae_sweep.__main__ import main\n"
        "sys.argv = ['sae_sweep', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'wandb', 'datasets', 'transformer_lens'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow(reason="the sweep that is stopped is a process that imports torch first")
def test_a_terminated_sweep_resumes_to_the_same_weights(cli: Cli, tmp_path: Path, small: list[str]) -> None:
    words = [*small, "seed=42,49", "tracking=none", "tokens=102_400"]
    cut = tmp_path / "multirun" / "cut"
    process = start([*words, "sweep=cut"], tmp_path)
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in cut.glob("*/history.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no history appeared"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "launch the same command again to resume" in errors
    assert not list(cut.glob("*/sae"))

    for sweep in ("cut", "whole"):
        result = cli(*words, f"sweep={sweep}")
        assert result.code == 0, result.err
    for run in cut.glob("*/sae"):
        twin = tmp_path / "multirun" / "whole" / run.parent.name
        for name, weight in load_sae(run).state_dict().items():
            assert torch.equal(weight, load_sae(twin).state_dict()[name]), name
        assert logged(run.parent) == logged(twin)
