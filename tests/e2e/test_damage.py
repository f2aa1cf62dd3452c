"""Damaged records of one run: the other runs are shown, compared and trained, and one line names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli, Result

OWN = ("tracking=none", "sweep=mine")


def change_a_digit(file: Path) -> None:
    whole = file.read_text()
    at = max(whole.rfind(digit) for digit in "123456789")
    file.write_text(whole[:at] + "0" + whole[at + 1 :])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def put_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lines_about(result: Result, file: Path) -> list[str]:
    assert "Traceback" not in result.err
    return [line for line in result.err.splitlines() if str(file.absolute()) in line]


@pytest.mark.slow(reason="trains a sweep, and launches and compares it again after each damage")
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("damage", [change_a_digit, cut, put_a_folder])
def test_a_damaged_record_concerns_its_run_alone(
    cli: Cli, small: list[str], damage: Callable[[Path], None]
) -> None:
    words = ["-m", *small, *OWN, "seed=1,2,3"]
    assert cli(*words).code == 0
    sweep = Path("multirun/mine")
    whole = Path("multirun/whole")
    shutil.copytree(sweep, whole)
    name = sorted(path.name for path in sweep.iterdir() if (path / "sae").is_dir())[0]

    def damaged(record: str) -> Path:
        shutil.rmtree(sweep)
        shutil.copytree(whole, sweep)
        damage(sweep / record)
        return sweep / record

    for record in (f"{name}/status.json", f"{name}/metrics.json", f"{name}/config.yaml"):
        file = damaged(record)
        result = cli("task=match", *OWN)
        assert result.code == 1
        assert len(lines_about(result, file)) == 1
        assert result.out.count("damaged") == 1
        assert result.out.count("done") == 2

    status = damaged(f"{name}/status.json")
    shown = cli("task=status", *OWN).out
    assert "1 damaged" in shown
    assert "2 done" in shown
    weights = (sweep / name / "sae" / "sae_weights.safetensors").stat().st_mtime_ns
    result = cli(*[word.replace("1,2,3", "1,2,3,4") for word in words])
    assert result.code == 1
    assert len(lines_about(result, status)) == 1
    assert "remove it to train this run again" in result.err
    assert result.out.count("done") == 3  # the fourth was trained
    assert (sweep / name / "sae" / "sae_weights.safetensors").stat().st_mtime_ns == weights

    if damage is not put_a_folder:  # which nothing can be written over
        metrics = damaged(f"{name}/metrics.json")
        result = cli(*words)
        assert result.code == 0
        assert len(lines_about(result, metrics)) == 1
        assert metrics.read_bytes() == (whole / name / "metrics.json").read_bytes()

    config = damaged(f"{name}/config.yaml")
    config.rmdir() if config.is_dir() else config.unlink()
    assert cli(*words).code == 0
    assert config.read_text() == (whole / name / "config.yaml").read_text()

    plan = damaged("plan.json")
    for command in (["task=status", *OWN], ["task=match", *OWN], words):
        result = cli(*command)
        assert result.code == 1
        assert len(lines_about(result, plan)) == 1
        assert result.out == ""
