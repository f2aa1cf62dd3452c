"""`bench/sampling.py` times both samplers on the same documents, and refuses bad input in one line."""

import json
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow(reason="the script imports the libraries of language models first")
def test_records_of_both_samplers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    words = ["--documents", "5", "--longest", "12", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["sampling.py", *words])
    monkeypatch.syspath_prepend(BENCH)
    try:
        runpy.run_path(str(BENCH / "sampling.py"), run_name="__main__")
    finally:
        logging.disable(logging.NOTSET)
    generate, sample = json.loads(out.read_text())
    assert [generate["sampler"], sample["sampler"]] == ["generate", "sample"]
    assert generate["ratio_to_generate"] == 1
    assert sample["ratio_to_generate"] == sample["tokens_per_s"] / generate["tokens_per_s"]
    for one in (generate, sample):
        assert (one["model"], one["documents"], one["longest"]) == ("gpt2-pico", 5, 12)
    assert capsys.readouterr().out.count("gpt2-pico") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--documents", "0"], "argument --documents: 0 is not positive"),
        (["--model", "./nowhere"], "sampling.py: error: model.path=./nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., Result], words: list[str], message: str) -> None:
    done = refused("sampling.py", *words)
    assert done.code != 0
    assert done.err.splitlines()[-1].endswith(message)
    assert "Traceback" not in done.err
