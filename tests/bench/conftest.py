"""A benchmark in this process, for what it refuses before it measures."""

import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a script of bench/ that ends early; returns exit code, standard output and standard error."""

    def call(script: str, *words: str) -> Result:
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.syspath_prepend(BENCH)
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(BENCH / script), run_name="__main__")
        finally:
            logging.disable(logging.NOTSET)
        captured = capsys.readouterr()
        if isinstance(ended.value.code, str):  # what Python itself would print
            return Result(1, captured.out, f"{captured.err}{ended.value.code}\n")
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call
