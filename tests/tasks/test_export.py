"""`task=export` as a command: what it refuses. What it writes is tested beside `task=analyse`."""

from pathlib import Path

import pytest

from sae_sweep.store import PlannedRun
from tests.conftest import Cli
from tests.tasks.test_publish import plan, runs

__all__ = ["plan", "runs"]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ((), ["sae_sweep: format=text: not one of neuronpedia, delphi"]),
        (("format=json",), ["sae_sweep: format=json: not one of neuronpedia, delphi"]),
        (("format=neuronpedia",), 2 * ["its features are not analysed yet: run task=analyse first"]),
    ],
)
def test_what_is_wrong_is_one_line_each(
    runs: list[PlannedRun], cli: Cli, words: tuple[str, ...], lines: list[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = cli("task=export", "sweep=mine", *words)
    assert result.code in (1, 2)
    told = result.err.strip().splitlines()
    assert len(told) == len(lines)
    assert all(line in one for line, one in zip(lines, told, strict=True))
    assert sorted(tmp_path.rglob("*")) == before
