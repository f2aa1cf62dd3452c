"""`bench/lm.py` times both kinds of attention, and refuses bad input in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

LM = Path(__file__).parents[2] / "bench" / "lm.py"


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(LM), *words], capture_output=True, text=True, timeout=300)


@pytest.mark.slow(reason="the script runs as it is typed, in a process that imports torch first")
def test_records_of_both_kinds_of_attention(tmp_path: Path):
    out = tmp_path / "out.json"
    words = ["--layers", "1,2", "--batch", "2", "--seq-len", "32", "--text-tokens", "2000"]
    done = bench(*words, "--dtype", "float32", "--repeats", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())
    assert [(r["layer"], r["attention"]) for r in records] == [
        (1, "eager"),
        (1, "sdpa"),
        (2, "eager"),
        (2, "sdpa"),
    ]
    for r in records:
        assert (r["model"], r["dtype"], r["batch"], r["seq_len"]) == ("gpt2-pico", "float32", 2, 32)
        assert r["tokens_per_s"] == pytest.approx(64 / r["seconds"])
        assert 0 < r["tokenisation_share"] < 1
        assert r["ratio_to_eager"] == 1 or r["attention"] == "sdpa"
    assert done.stdout.count("gpt2-pico") == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "12"], "lm.py: error: layer=12: gpt2-pico has layers 0 to 11"),
        (["--dtype", "int3"], "model.dtype=int3: not one of auto, float32, bfloat16, float16"),
        (["--batch", "0"], "argument --batch: 0 is not positive"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., Result], words: list[str], message: str):
    done = refused("lm.py", *words)
    assert done.code != 0
    assert done.err.splitlines()[-1].endswith(message)
    assert "Traceback" not in done.err
