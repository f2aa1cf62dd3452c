"""`tools/gpu_check.py` on this machine: every part at a tiny size, what it skips, and what a fault leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import gpu_check
import gpu_commands
import gpu_kernels
import gpu_steps
from gpu_setting import TINY, Cut, Setting

from sae_sweep.ops.reference import ReferenceKernels


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    return int(ended.value.code or 0)


@pytest.fixture
def parts_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Replace what parts do by Python text; returns the results."""

    def run(seconds: float, **code: str) -> list[dict[str, Any]]:
        script = tmp_path / "parts.py"
        lines = "".join(f"{name!r}: {text!r}," for name, text in code.items())
        script.write_text(
            f"import json, os, sys, time\nOUT = sys.argv[5]\nexec({{\n{lines}\n}}[sys.argv[1]])\n"
        )
        monkeypatch.setattr(gpu_check, "PARTS_SCRIPT", script)
        shares = [gpu_check.Part(name, 1 / len(code), name) for name in code]
        monkeypatch.setattr(gpu_check, "PARTS", shares)
        return gpu_check.check("cpu", seconds, list(code))

    return run


@pytest.mark.slow(reason="each part is a process that imports torch, and five of them train")
def test_every_part_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = tmp_path / "out.json"
    assert call(monkeypatch, "--device", "cpu", "--seconds", "1800", "--json", str(file)) == 0
    document = json.loads(file.read_text())
    assert {part["part"]: part["state"] for part in document["parts"]} == {
        part.name: "ok" for part in gpu_check.PARTS
    }
    records = {part["part"]: part["records"] for part in document["parts"]}
    assert len(records["kernels"]) == len(gpu_kernels.KERNEL_CHECKS) * (len(gpu_kernels.ODD) + len(TINY))
    assert [record["equal"] for record in records["bits"]] == ["fused = solo", "fused = resumed"]
    assert len(document["table"]) == len(TINY) * len(gpu_steps.ARCHITECTURES) == len(records["dense"])
    for row in document["table"]:
        assert row["ratio_to_reference"] == pytest.approx(row["steps_per_s"] / row["reference_per_s"])
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * row["steps_per_s"])
        assert row["ratio_to_dense"] > 0
    assert [record["model"] for record in records["lm"]] == ["gpt2-pico", "gpt2-small"]
    assert [len(records[name][0]["explained_variance"]) for name in ("quickstart", "gpt2-small")] == [2, 4]
    shown = capsys.readouterr().out
    assert "every part was done" in shown
    assert "waits/step" in shown


def test_without_cuda_it_says_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(monkeypatch, "--json", str(tmp_path / "out.json")) == 0
    assert json.loads((tmp_path / "out.json").read_text())["state"] == "skipped"
    shown = capsys.readouterr().out
    assert shown.startswith("skipped: torch ")
    assert all(part.what in shown for part in gpu_check.PARTS)


def test_what_is_not_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(gpu_check, "MODULES", ("torch", "no_such_module", "nor_this"))
    assert call(monkeypatch) == 1
    assert capsys.readouterr().out == "gpu_check.py: not installed: no_such_module, nor_this\n"


def test_a_part_that_fails_leaves_the_others(parts_of: Any):
    put = "open(OUT, 'a').write(json.dumps({}) + '\\n')"
    results = parts_of(
        20.0,
        good=put.format("{'equal': 'a = b'}"),
        wrong=put.format("{'failed': 'ValueError: no', 'traceback': 'Traceback'}") + "; sys.exit(1)",
        crash="sys.stderr.write('device lost'); sys.stderr.flush(); os.abort()",
        last=put.format("{'skipped': 'no pytest'}"),
    )
    assert [result["state"] for result in results] == ["ok", "failed", "failed", "skipped"]
    assert results[0]["records"] == [{"equal": "a = b"}]
    assert (results[1]["failed"], results[1]["traceback"]) == ("ValueError: no", "Traceback")
    assert results[2]["failed"] == "exit code -6: device lost"
    assert results[3]["why"] == "no pytest"


def test_a_part_that_takes_too_long_is_ended_and_keeps_what_it_wrote(parts_of: Any):
    first = "open(OUT, 'a').write(json.dumps({'equal': 'a = b'}) + '\\n{\"equ'); time.sleep(60)"
    results = parts_of(6.0, endless=first, later="pass")
    assert [result["state"] for result in results] == ["cut", "ok"]
    assert results[0]["records"] == [{"equal": "a = b"}]
    assert sum(result["seconds"] for result in results) < 30


def test_a_part_that_is_cut_says_where_it_was_and_the_check_fails(
    parts_of: Any, capsys: pytest.CaptureFixture[str]
):
    (result,) = parts_of(
        3.0, endless="import faulthandler; faulthandler.dump_traceback_later(0.5); time.sleep(60)"
    )
    assert result["state"] == "cut"
    assert "most recent call first" in result["traceback"]
    assert "    |   File" in capsys.readouterr().out


def test_a_command_that_is_cut_leaves_its_stacks_and_what_it_printed(tmp_path: Path):
    sweeps = gpu_commands._Sweeps(tmp_path, "cpu")

    def start(sweep: str, words: Any) -> "subprocess.Popen[bytes]":
        with (tmp_path / f"{sweep}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"],
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                stdout=log,
                stderr=log,
            )

    sweeps._start = start  # type: ignore[method-assign]

    def cut(signum: int, frame: object) -> None:
        raise Cut

    def cut_once_begun() -> None:
        log = tmp_path / "s.log"
        while not (log.exists() and log.read_bytes()):
            if over.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGALRM)

    over = threading.Event()
    before = signal.signal(signal.SIGALRM, cut)
    threading.Thread(target=cut_once_begun, daemon=True).start()
    try:
        with pytest.raises(Cut, match=r"(?s)exit code -6: python -m sae_sweep a=b\nbegun.*File \"<string>\""):
            sweeps.train("s", ["a=b"])
    finally:
        over.set()
        signal.signal(signal.SIGALRM, before)


def test_a_check_that_is_not_whole_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    cut = {
        "part": "bits",
        "what": "w",
        "seconds": 3.0,
        "state": "cut",
        "records": [],
        "why": "not done after its 3 s",
    }
    late = {"part": "lm", "what": "w", "seconds": 0.0, "state": "skipped", "records": [], "why": "no time"}
    told = {
        "part": "suite",
        "what": "w",
        "seconds": 1.0,
        "state": "skipped",
        "records": [],
        "why": "no pytest",
    }
    for results, code, said in (
        ([cut, late], 1, "not done: bits; not done: lm"),
        ([told], 0, "every part was done"),
    ):
        monkeypatch.setattr(gpu_check, "check", lambda *_, results=results: results)
        assert call(monkeypatch, "--device", "cpu") == code
        assert capsys.readouterr().out.splitlines()[-1] == said


def test_the_table_has_a_row_for_each_step_also_without_a_dense_one():
    step = {"size": "s", "backend": "triton", "steps_per_s": 6.0, "tokens_per_s": 12.0}
    step |= {"ratio_to_reference": 3.0, "host_waits": 1.0, "busy": 0.25, "triton_peak_gib": 2.5}
    steps = [{**step, "architecture": name} for name in ("topk", "relu")]
    dense = [{"size": "s", "architecture": "topk", "dense_per_s": 2.0}, {"left_out": "s relu"}]
    rows = gpu_check.table([{"part": "steps", "records": steps}, {"part": "dense", "records": dense}])
    assert [row["ratio_to_dense"] for row in rows] == [3.0, None]
    assert gpu_check._cells(rows[0]) == ("s", "topk", "6.0", "12", "3.00x", "3.00x", "25%", "1.0", "2.50")
    assert gpu_check._cells({**rows[1], "host_waits": None})[5:] == ("-", "25%", "-", "2.50")
    assert gpu_check.table([{"part": "dense", "records": dense}]) == []


def test_a_wrong_kernel_is_found():
    class Wrong(ReferenceKernels):
        def spmm(self, csr, values, dense):
            return super().spmm(csr, values, dense) + 1

        def topk(self, z, k):
            columns, values = super().topk(z, k)
            return columns, values + 1e-5

        def encode_topk(self, x, W, b, k, dead_candidates=None):
            return super().encode_topk(x, W, b, k - 1, dead_candidates)

        def encode_above(self, x, W, b, floors, max_nnz, dead_candidates=None):
            return super().encode_above(x, W, b, floors + 0.1, max_nnz, dead_candidates)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    for name, check in gpu_kernels.KERNEL_CHECKS.items():
        check(ReferenceKernels(), ReferenceKernels(), TINY[0], draw)
        if name in ("products", "topk", "encode_topk", "encode_above"):
            with pytest.raises(AssertionError):
                check(Wrong(), ReferenceKernels(), TINY[0], draw)


def test_other_weights_are_named():
    with pytest.raises(gpu_commands.CommandError, match="resumed, 2 of 3 runs have other weights: b, c"):
        gpu_commands._require_equal({"a": b"1", "b": b"2", "c": b"3"}, {"a": b"1", "b": b"3"}, "resumed")


def test_waits_are_counted_from_the_warnings():
    def work() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    assert gpu_steps.count_warnings(work, "synchronizing") == 3
    assert gpu_steps.host_waits(work, torch.device("cpu")) is None


def test_a_setting_is_tiny_only_on_a_cpu():
    assert Setting(torch.device("cpu"), 1.0, print).sizes == TINY
    assert {size.name for size in Setting(torch.device("cuda"), 1.0, print).sizes} == {
        "quickstart",
        "gpt2-small",
    }
