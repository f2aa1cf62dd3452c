"""`bench/peers.py` at a tiny size: its records, the peers it skips, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import peers
from peer_pairs import PeerError, Row, Setting, Theirs, _check_same_work

BENCH = Path(__file__).parents[2] / "bench"
SIZE = ["--d-in", "32", "--d-sae", "128", "--batch", "64", "--k", "4", "--l0", "6", "--repeats", "2"]
TINY = Setting(torch.zeros(8, 4), d_sae=8, k=2, l0=3.0, device="cpu", backend="reference", repeats=1)


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    save_file({"x": 3 * x + 1}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.slow(reason="the script runs as it is typed, in a process that imports torch first")
def test_both_sides_do_the_same_and_are_recorded(activations: Path, tmp_path: Path):
    """The study's trainer runs in this environment; that SAELens is missing here is said once."""
    command = [sys.executable, str(BENCH / "peers.py"), *SIZE, "--backend", "reference", "--device", "cpu"]
    command += ["--activations", str(activations), "--json", str(tmp_path / "out.json")]
    command += ["--peer", f"saelens={sys.executable}", "--architectures", "topk,jumprelu"]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCH.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("saelens: skipped, no module sae_lens in its interpreter: pip install sae-lens")
        == 1
    )
    assert "sparsify: skipped; pip install eai-sparsify" in done.stdout
    records = json.loads((tmp_path / "out.json").read_text())
    assert [(r["architecture"], r["peer"], r["k"]) for r in records] == [
        ("topk", "study", 4),
        ("jumprelu", "study", None),
    ]
    for r in records:
        assert (r["d_in"], r["d_sae"], r["batch"]) == (32, 128, 64)
        assert (r["backend"], r["device"], r["repeats"]) == ("reference", "cpu", 2)
        assert r["ratio_to_peer"] == pytest.approx(r["tokens_per_s"] / r["peer_tokens_per_s"])
        assert r["mse"] == pytest.approx(r["peer_mse"], rel=1e-4)
        assert r["l0"] == pytest.approx(r["peer_l0"], rel=1e-4)
    assert records[1]["l0"] == pytest.approx(6, abs=0.1)


def test_other_work_is_refused():
    row = Row("topk", "study", "default")
    ours = {"mse": torch.tensor(0.5), "l0": torch.tensor(4.0)}
    _check_same_work(row, ours, {"mse": 0.5001, "l0": 4.0})
    with pytest.raises(PeerError, match=r"not the same work: error 0.50000 and L0 4.00 here, 0.51000"):
        _check_same_work(row, ours, {"mse": 0.51, "l0": 4.0})


def test_a_peer_that_breaks_says_why(tmp_path: Path):
    theirs = Theirs(Row("topk", "study", "default"), TINY, tmp_path / "none.safetensors", sys.executable)
    with pytest.raises(PeerError, match=r"its process ended: FileNotFoundError: .*none.safetensors"):
        theirs.hello()
    with pytest.raises(PeerError, match="its process ended"):
        theirs.ask("step")
    theirs.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peer", "saelens=/no/such"], "--peer saelens=/no/such: no interpreter there"),
        (["--peer", "other=python"], "other is not one of saelens, dictionary_learning, sparsify, study"),
        (["--peers", "other"], "other: not one of saelens, dictionary_learning, sparsify, study"),
        (["--architectures", "relu"], "relu: not one of topk, batchtopk, jumprelu"),
        (["--d-sae", "16"], "--k 16 and --l0 45: must be below --d-sae 16"),
        (["--activations", "/no/such"], "--activations /no/such: no file there"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py", *words])
    with pytest.raises(SystemExit, match="2"):
        peers._keys()
    assert capsys.readouterr().err.endswith(f"{message}\n")
