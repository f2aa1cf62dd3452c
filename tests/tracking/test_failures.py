"""Whatever happens to W&B, the history is complete and nothing stops."""

import json
import logging
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from sae_sweep.config import CommandConfig, TrackingConfig
from sae_sweep.signals import Interrupted, stop_signals
from sae_sweep.store import SweepFolder
from sae_sweep.tracking import open_comparison_sink, wandb_run
from sae_sweep.tracking.environment import wandb_mode
from tests.tracking.conftest import OpenSink
from tests.tracking.offline import offline_runs


class FakeRun:
    """Stands in for `wandb.Run`; `breaks` names the method that raises."""

    def __init__(self, breaks: str = "", step: int = 0, *, resumed: bool = False) -> None:
        self.breaks = breaks
        self.offline = True
        self.step = step
        self.resumed = resumed
        self.logged: list[dict[str, Any]] = []
        self.finished: list[int] = []
        self.summary = SimpleNamespace(update=lambda values: self._do("summary"))

    def _do(self, name: str) -> None:
        if name == self.breaks:
            raise RuntimeError(f"no {name}\nand a long story")

    def define_metric(self, *_: Any, **__: Any) -> None:
        self._do("define_metric")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._do("log")
        self.logged.append(values)
        self.step = self.step + 1 if step is None else step

    def log_artifact(self, _: Any) -> None:
        self._do("log_artifact")

    def finish(self, exit_code: int) -> None:
        self._do("finish")
        self.finished.append(exit_code)


@pytest.mark.parametrize("stage", ["init", "define_metric", "log", "summary", "log_artifact", "finish"])
def test_a_failing_tracker_costs_one_warning(
    tmp_path: Path,
    open_one: OpenSink,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
) -> None:
    def init(**_: Any) -> FakeRun:
        if stage == "init":
            raise RuntimeError("no init")
        return FakeRun(stage)

    monkeypatch.setattr(wandb, "init", init)
    sink = open_one()
    with caplog.at_level(logging.WARNING):
        sink.rewind(None)
        sink.scalars(10, {"loss": 1.0})
        sink.scalars(20, {"loss": 0.5})
        sink.summary({"ev": 0.9})
        sink.artifact("run", tmp_path / "run")
        sink.finish(failed=False)
    lost = 3 if stage == "log" else 1  # two points, and the summary as a point
    assert caplog.text.count(f"(no {stage})") == 1
    assert len(caplog.records) == 1 + (lost > 1)
    assert (f"W&B lost {lost} records of run" in caplog.text) == (lost > 1)
    assert "long story" not in caplog.text
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line).keys() - {"time", "tokens"}) for line in lines] == [
        ["loss"],
        ["loss"],
        ["summary"],
        ["artifact", "path"],
    ]


def test_a_record_that_wandb_refuses_is_lost_alone(
    tmp_path: Path, open_one: OpenSink, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_one()
    sink.rewind(None)
    sink.scalars(10, {"loss": 1.0})
    sink.image("density", tmp_path / "run" / "missing.png")
    sink.artifact("run", tmp_path / "run")
    sink.scalars(20, {"loss": 0.5})
    sink.finish(failed=False)
    [run] = offline_runs(tmp_path)
    assert run.points("train/loss") == [(10, 1.0), (20, 0.5)]
    assert (run.exit_code, [one.name for one in run.artifacts]) == (0, ["run"])
    assert caplog.text.count("W&B lost a record of run (") == 1


@pytest.mark.parametrize("stage", ["define_metric", "log"])
def test_a_run_that_is_given_up_is_finished(
    open_one: OpenSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    run = FakeRun(stage)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = open_one()
    sink.rewind(None)
    for tokens in range(1, 20):
        sink.scalars(tokens, {"loss": 1.0})
    sink.finish(failed=False)
    assert run.finished == [1]
    assert caplog.text.count("going on without it") == 1


@pytest.mark.parametrize("artifacts", [True, False])
def test_the_artifact_is_optional(
    tmp_path: Path, open_one: OpenSink, monkeypatch: pytest.MonkeyPatch, artifacts: bool
) -> None:
    run = FakeRun()
    sent: list[Any] = []
    monkeypatch.setattr(run, "log_artifact", sent.append)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = open_one(artifacts=artifacts)
    sink.rewind(None)
    sink.artifact("run with a space", tmp_path / "run")
    sink.finish(failed=False)
    assert len(sent) == artifacts
    assert '"artifact": "run with a space"' in (tmp_path / "run" / "history.jsonl").read_text()


def test_a_stop_that_wandb_turns_into_an_error_is_still_a_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, open_one: OpenSink
) -> None:
    def init(**_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("the run was cancelled") from error

    monkeypatch.setattr(wandb, "init", init)
    sink = open_one()
    with pytest.raises(Interrupted), stop_signals():
        sink.scalars(0, {"loss": 1.0})
    assert not caplog.messages


@pytest.mark.parametrize("how", ["backend", "environment"])
def test_without_tracking_wandb_is_not_imported(
    tmp_path: Path,
    open_one: OpenSink,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise, and that be a warning
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    sink = open_one(backend="none" if how == "backend" else "wandb")
    sink.rewind(None)
    sink.scalars(10, {"loss": 1.0})
    sink.finish(failed=False)
    if how == "backend":
        command = CommandConfig(tracking=TrackingConfig(backend="none"))
        comparison = open_comparison_sink(SweepFolder(tmp_path), command, [])
        comparison.table("t", ["a"], [[1]])
        comparison.finish()
    assert caplog.records == []
    assert not (tmp_path / "wandb").exists()
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 1


def test_a_server_that_refuses_is_tried_once_a_process(
    open_one: OpenSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes: list[str] = []
    ids: list[str] = []

    def init(mode: str, id: str, **_: Any) -> FakeRun:
        modes.append(mode)
        ids.append(id)
        if mode == "online":
            raise RuntimeError("timed out")
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "answers", lambda url: True)
    monkeypatch.setenv("WANDB_MODE", "online")
    with caplog.at_level(logging.INFO):
        for name in ("a", "b"):
            open_one(name).rewind(None)
    assert modes == ["online", "offline", "offline"]
    assert len(set(ids)) == 3
    assert ids[1].startswith(ids[0])
    assert caplog.text.count("W&B cannot be reached (timed out)") == 1
    assert caplog.text.count("wandb sync") == 1


@pytest.mark.usefixtures("fresh_wandb")
def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, open_one: OpenSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode) or FakeRun())
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    open_one().rewind(None)
    assert modes == ["offline"]
    assert "http://127.0.0.1:9 does not answer" in caplog.text


def test_a_server_answers_even_with_an_error() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert wandb_run.answers(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert not wandb_run.answers("no url at all")


def test_an_online_run_that_resumes_is_not_sent_twice(
    open_one: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FakeRun()
    # Sent until 300 tokens before the process was killed; the checkpoint is older.
    second = FakeRun(step=301, resumed=True)
    runs = iter((first, second))
    arguments: list[dict[str, Any]] = []

    def init(**keys: Any) -> FakeRun:
        arguments.append(keys)
        return next(runs)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "answers", lambda url: True)
    monkeypatch.setenv("WANDB_MODE", "online")
    sink = open_one()
    sink.rewind(None)
    sink.scalars(100, {"loss": 1.0})
    mark = sink.mark()
    for tokens in (200, 300):
        sink.scalars(tokens, {"loss": 1.0})
    again = open_one()
    again.rewind(mark)
    for tokens in (200, 300, 400):
        again.scalars(tokens, {"loss": 1.0})
    assert [row["tokens"] for row in first.logged + second.logged] == [100, 200, 300, 400]
    assert [keys["resume"] for keys in arguments] == ["allow", "allow"]
    assert arguments[0]["id"] == arguments[1]["id"]


def test_a_run_that_was_offline_is_replayed_when_online(
    open_one: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [FakeRun(), FakeRun()]
    opened = iter(runs)
    monkeypatch.setattr(wandb, "init", lambda **_: next(opened))
    sink = open_one()
    sink.rewind(None)
    sink.scalars(100, {"loss": 1.0})
    monkeypatch.setattr(wandb_run, "answers", lambda url: True)
    monkeypatch.setenv("WANDB_MODE", "online")
    again = open_one()
    again.rewind(sink.mark())
    again.scalars(200, {"loss": 1.0})
    assert [row["tokens"] for row in runs[1].logged] == [100, 200]


KEY = "0123456789abcdef" * 3


def ask_the_server(_: object) -> None:
    raise AssertionError("a look-up that asks the server")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": "too-short"}, "online"),  # signing in then says what is wrong
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "offline"),
        ({"WANDB_BASE_URL": "https://in-netrc.example.org:8080"}, "online"),
        ({"WANDB_BASE_URL": "https://in-settings.example.org"}, "online"),
        ({"WANDB_BASE_URL": "https://in-home.example.org"}, "offline"),
        ({"WANDB_BASE_URL": "https://in-home.example.org", "NETRC": ""}, "online"),
    ],
)
@pytest.mark.usefixtures("fresh_wandb")
def test_the_mode_follows_the_environment_then_the_key_that_wandb_finds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    mode: str,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, host in {"netrc": "in-netrc.example.org:8080", ".netrc": "in-home.example.org"}.items():
        (tmp_path / name).write_text(f"machine {host}\n login user\n password {KEY}\n")
        (tmp_path / name).chmod(0o600)
    settings = tmp_path / "config" / "settings"
    settings.parent.mkdir()
    settings.write_text(f"[default]\nbase_url = https://in-settings.example.org\napi_key = {KEY}\n")
    if environment.get("WANDB_BASE_URL") == "https://in-settings.example.org":
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(settings.parent))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for credentials in ("AuthApiKey", "AuthIdentityTokenFile"):
        monkeypatch.setattr(f"wandb.sdk.lib.wbauth.{credentials}.verify", ask_the_server)
    before = settings.read_text()
    assert wandb_mode(TrackingConfig()) == mode
    assert settings.read_text() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("fresh_wandb")
def test_a_broken_netrc_is_no_login_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine x\n nonsense\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(TrackingConfig()) == "offline"
    assert capfd.readouterr() == ("", "")
