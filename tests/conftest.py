"""What all tests share: one thread, checked shapes, marks of slow tests, the command line in this process."""

import functools
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

from tests import shapes

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; two workers or child processes share the cores
os.environ.pop("COLUMNS", None)  # readline sets it in xdist's workers: 80, whatever the terminal
shapes.install()  # before the first import of a module that it checks

from sae_sweep import signals  # noqa: E402
from sae_sweep.config import RunConfig  # noqa: E402
from sae_sweep.plan import Plan, Request, make_plan  # noqa: E402


def _by_name(config: RunConfig) -> dict[str, str]:
    """Fingerprints without a look at text or weights."""
    return {"corpus": config.dataset.name}


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]

SLOW_S = 5.0
"""A test that takes longer carries `@pytest.mark.slow(reason="why it must")`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests say why; SLURM's go first, for they mostly wait, and files that take minutes before others.

    Coverage is what the short tests of each room reach. Whole sweeps run without its tracer, which doubles
    their time and would count as covered what they pass by and nothing checks.
    """
    for item in items:
        for marker in item.iter_markers("slow"):
            if marker.args or not marker.kwargs.get("reason"):
                raise pytest.UsageError(f'{item.nodeid}: slow needs one argument, reason="why it must"')
        if item.get_closest_marker("slow") or item.path.parent.name == "e2e":
            item.add_marker("no_cover")
    items.sort(key=lambda item: {"slurm": 0, "e2e": 1, "tools": 2}.get(item.path.parent.name, 3))


def pytest_collection_finish() -> None:
    """Leave what the imports made out of garbage collections, which every group of runs asks for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share what takes long to make run in one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            if file in ("tests/cli/test_grids.py", "tests/e2e/test_experiments.py"):
                return "experiment_plan"
            if file == "tests/e2e/test_hub.py":  # all compare with one sweep
                return file
            return {"slurm": "slurm", "e2e": nodeid}.get(Path(file).parent.name, file)

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that should say why they are slow; how fast the machine is decides nothing else."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    over = [
        report
        for report in reports
        if isinstance(report, pytest.TestReport)
        and report.duration > SLOW_S
        and "slow" not in report.keywords
        and report.when == "call"
    ]
    if over:
        terminalreporter.section(f"over {SLOW_S:g} s without a mark that says why")
    for report in sorted(over, key=lambda report: -report.duration):
        terminalreporter.line(f"{report.duration:.1f} s {report.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def _hydra_is_not_traced() -> Iterator[None]:
    """Hydra composes without coverage's tracer, which would double its time and see none of our lines."""
    load = ConfigLoaderImpl.load_configuration

    def untraced(*arguments: Any, **keys: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return load(*arguments, **keys)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "load_configuration", untraced)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB, which is soon full; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "sae_sweep_test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def corpora_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with the corpora of the real standard library, and of a little of the real libraries."""
    from sae_sweep.text import embedded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "LIBRARY_BYTES", 2_000_000)
        folder = tmp_path_factory.mktemp("cache")
        embedded.embedded_corpus("stdlib_docs", folder)
        yield folder


@contextmanager
def _logging_kept() -> Iterator[None]:
    """A command sets logging up for its own process: undo that, for the tests that follow in this one."""
    root, ours = logging.getLogger(), logging.getLogger("sae_sweep")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Type a command in an empty folder; returns exit code, standard output and standard error."""
    from sae_sweep.__main__ import main

    monkeypatch.setattr(signals, "listen", signals.StopRequest)  # this process outlives the command
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def call(*words: str) -> Result:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["sae_sweep", *words])
        with pytest.raises(SystemExit) as ended, _logging_kept():
            main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """Undo what a test does to logging."""
    with _logging_kept():
        yield


@pytest.fixture
def planned(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Type a command whose plan is caught instead of carried out."""
    from sae_sweep.tasks import train as task

    caught: list[Plan] = []

    def train(request: Request) -> int:
        caught.append(make_plan(request, _by_name))
        return 0

    monkeypatch.setattr(task, "train", train)

    def call(*words: str) -> Plan:
        result = cli(*words)
        assert result.code == 0, result.err
        return caught[-1]

    return call


@pytest.fixture(scope="session")
def experiment_plan() -> Callable[[str], Plan]:
    """The plan of an experiment, composed once for all tests."""
    from hydra import initialize_config_dir
    from hydra.types import RunMode

    from sae_sweep.cli.compose import compose
    from sae_sweep.cli.schema import conf_folder, register_schemas
    from sae_sweep.cli.sweeper import register_sweeper

    @functools.cache
    def plan(name: str) -> Plan:
        register_schemas()
        register_sweeper()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            words = [f"experiment={name}"]
            request = compose(words, loader.load_configuration("config", words, RunMode.MULTIRUN), loader)
        return make_plan(request, _by_name)

    return plan
