"""`bench/step.py` times every architecture, and its records have what its documentation says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

STEP = Path(__file__).parents[2] / "bench" / "step.py"


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STEP), *words], capture_output=True, text=True, timeout=300)


@pytest.mark.slow(reason="the script runs as it is typed, in a process that imports torch first")
def test_records_of_every_architecture(tmp_path: Path):
    file, out = tmp_path / "x.safetensors", tmp_path / "out.json"
    save_file({"x": torch.randn(64, 24)}, file)
    words = ["--activations", str(file), "--d-in", "32", "--d-sae", "256", "--k", "4", "--batch", "64"]
    done = bench(*words, "--repeats", "1", "--device", "cpu", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "x.safetensors: 24 dimensions, rotated into 32; 64 tokens" in done.stdout
    records = json.loads(out.read_text())
    assert {r["architecture"] for r in records} == {"topk", "batchtopk", "jumprelu", "relu"}
    assert {r["backend"] for r in records} == {"reference", "cpu"}
    for r in records:
        assert (r["d_in"], r["d_sae"], r["batch"], r["device"]) == (32, 256, 64, "cpu")
        assert r["tokens_per_s"] == pytest.approx(64 / r["seconds"])
        assert r["ratio_to_reference"] == 1.0 or r["backend"] != "reference"
        assert r["ratio_to_encoder"] > 0
        assert r["l0"] == pytest.approx(4 if r["k"] else 45, rel=0.1)
    assert {round(r["dead_share"], 1) for r in records} == {0.0, 0.3}
