"""The launcher that trains in this process."""

import dataclasses
import logging
from pathlib import Path

import pytest

from sae_sweep.launch import inprocess
from sae_sweep.plan import Plan
from sae_sweep.signals import StopRequest
from sae_sweep.store import SweepFolder


def test_the_first_line_names_the_folder_as_a_shell_takes_it(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inprocess, "train_runs", lambda plan, runs, stop: None)
    apart = dataclasses.replace(plan, folder=SweepFolder(tmp_path / "a sweep"))
    with caplog.at_level(logging.INFO, "sae_sweep"):
        inprocess.InProcess().train(apart, StopRequest())
    assert f"'{tmp_path}/a sweep': 2 runs, 0 already done" in caplog.messages
