"""What only a process of its own can show: signals, exit codes, and what is imported when."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from sae_sweep.saes import load_sae


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sae_sweep", *words]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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


def test_a_terminated_sweep_resumes_to_the_same_weights(tmp_path: Path, small: list[str]) -> None:
    words = [*small, "seed=42,49", "sweep=cut", "tracking=none", "tokens=204_800"]
    process = start(words, tmp_path)
    histories = [tmp_path / "multirun" / "cut"]
    deadline = time.monotonic() + 120
    while not any(h.stat().st_size for f in histories for h in f.glob("*/history.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no history appeared"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "launch the same command again to resume" in errors
    assert not list(tmp_path.glob("multirun/cut/*/sae"))

    resumed = start(words, tmp_path)
    assert resumed.communicate(timeout=300) and resumed.returncode == 0
    whole = start([*words[:-1], "tokens=204_800", "sweep=whole"], tmp_path)
    assert whole.communicate(timeout=300) and whole.returncode == 0
    for run in (tmp_path / "multirun" / "cut").glob("*/sae"):
        twin = load_sae(tmp_path / "multirun" / "whole" / run.parent.name)
        for name, weight in load_sae(run).state_dict().items():
            assert torch.equal(weight, twin.state_dict()[name]), name
    for file in (tmp_path / "multirun" / "cut").glob("*/history.jsonl"):
        tokens = [line.split(",")[0] for line in file.read_text().splitlines() if '"loss"' in line]
        assert len(tokens) == len(set(tokens))
