"""`bench/study.py` counts the work of the plan, and its hours are the sum of its parts."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

STUDY = Path(__file__).parents[2] / "bench" / "study.py"


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STUDY), *words], capture_output=True, text=True, timeout=300)


@pytest.mark.slow(reason="the script runs as it is typed, in a process that imports torch first")
def test_parts_and_their_sum(tmp_path: Path):
    out = tmp_path / "out.json"
    plan = ["experiment=paper-mini", "seed=49", "dictionary=16", "layer=8", "k=16", "tokens=10_000"]
    done = bench(*plan, "--batch", "128", "--lm-batch", "1", "--repeats", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    parts = document["parts"]
    assert {part["part"] for part in parts} == {"LM pass", "SAE step", "evaluation", "matching"}
    (lm,) = [part for part in parts if part["part"] == "LM pass"]
    steps = [part for part in parts if part["part"] == "SAE step"]
    (saes,) = [part for part in parts if part["detail"] == "2048 features"]
    runs, groups = saes["count_fused"], lm["count_fused"] / 10_000
    assert runs > groups > 1
    assert lm["count_solo"] == runs * 10_000
    assert sum(part["count_fused"] for part in steps) == runs * (10_000 // 128)
    assert {part["detail"].split()[0] for part in steps} <= {"topk", "batchtopk", "jumprelu"}
    for name in ("hours_fused", "hours_solo"):
        assert document["hours"]["total"][name] == pytest.approx(sum(part[name] for part in parts))
    assert document["hours"]["total"]["hours_fused"] < document["hours"]["total"]["hours_solo"]
    assert "not included: loading" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense=1"], "nonsense"),
        (["--dead", "2"], "argument --dead: 2.0 is not a share"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., Result], words: list[str], message: str):
    done = refused("study.py", *words)
    assert done.code != 0
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
