"""Locks: one process at a time, with and without flock, and no lock outlives its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import SoftFileLease

from sae_sweep.config import RunConfig, SaeSweepError
from sae_sweep.store import (
    Lease,
    PlannedRun,
    RunFolder,
    SweepFolder,
    hold,
    hold_sweep,
    is_held,
    locks,
    prepared,
)
from sae_sweep.store.partial import partial_path

NO_FLOCK = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]

HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from sae_sweep.store import Lease, RunFolder, hold
def flock(*_):
    raise OSError(int(sys.argv[2]), "no flock here")
if int(sys.argv[2]):
    fcntl.flock = flock
with hold(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=[0, *NO_FLOCK], ids=["flock", *(errno.errorcode[code] for code in NO_FLOCK)])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes `flock` fail with this error, here and in `holder`; 0: it works."""
    found: int = request.param
    if found:
        without_flock(monkeypatch, found)
    return found


def without_flock(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "no flock here")

    monkeypatch.setattr(fcntl, "flock", flock)


@contextmanager
def holder(run: RunFolder, code: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run's lock."""
    command = [sys.executable, "-c", HOLDER, str(run.root), str(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "sweep" / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_holder_at_a_time(run: RunFolder, code: int) -> None:
    line = f"{run.root} is held by process {os.getpid()} on .*: wait for it, or stop it"
    with hold(run), pytest.raises(SaeSweepError, match=line), hold(run):
        pass
    with hold(run):
        pass


def test_another_process_is_named_and_its_death_frees_the_folder(run: RunFolder, code: int) -> None:
    with holder(run, code) as process:
        with pytest.raises(SaeSweepError, match=f"is held by process {process.pid} on ") as raised, hold(run):
            pass
        assert "\n" not in str(raised.value)
        assert is_held(run)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_held(run)
    with hold(run):
        pass


def test_a_suspended_process_keeps_its_run(
    run: RunFolder, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(run, code) as process:
        process.send_signal(signal.SIGSTOP)
        marker = Lease(run.root).marker
        if code:
            os.utime(marker, (1, 1))
        with pytest.raises(SaeSweepError, match=f"is held by process {process.pid} on "), hold(run):
            pass


def test_whether_a_run_is_held_can_be_asked_without_holding_it(run: RunFolder, code: int) -> None:
    assert not is_held(run)
    assert not run.root.exists()
    with hold(run):
        before = files(run.root.parent)
        assert is_held(run)
        assert files(run.root.parent) == before
    assert not is_held(run)


def test_a_run_in_a_folder_that_is_only_read_can_be_asked(
    run: RunFolder, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str, flags: int, *_: object, **__: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags)

    opened = os.open
    with hold(run):
        monkeypatch.setattr(os, "open", read_only)
        assert is_held(run)
        monkeypatch.undo()
        if code:
            without_flock(monkeypatch, code)
    monkeypatch.setattr(os, "open", read_only)
    assert not is_held(run)


def test_a_process_that_only_asks_is_waited_for(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(run):
        pass
    asking = (run.root / ".lock").open("r")
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: asking.close())
    with hold(run):
        assert is_held(run)


def test_two_that_ask_do_not_see_each_other(run: RunFolder) -> None:
    with hold(run):
        pass
    with (run.root / ".lock").open("r") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_held(run)


def test_what_a_killed_process_left_goes_when_the_folder_is_held_again(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    run = sweep.run("run")
    in_run = [partial_path(run.status), partial_path(run.checkpoint / "state.safetensors")]
    in_sweep = [
        partial_path(sweep.plan),
        partial_path(sweep.jobs / "0.json"),
        partial_path(sweep.matching / "a.png"),
    ]
    for path in (*in_run, *in_sweep):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    folder = partial_path(run.sae)
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    with hold(run):
        assert not any(path.exists() for path in (*in_run, folder))
        assert all(path.exists() for path in in_sweep)
    with hold_sweep(sweep):
        assert not any(path.exists() for path in in_sweep)


@pytest.mark.parametrize(
    "name",
    [
        ".config.yaml.original",
        "sae/.backup.00000001",
        "checkpoint/.state.safetensors.a1b2c3d_.safetensors",
        "features/.sae_sweep-partial-mine.txt",
        "features/.sae_sweep-partial-1-0123456789abcdef-0123456789ab.png",
    ],
)
def test_a_hidden_file_that_is_not_provably_ours_stays(run: RunFolder, name: str) -> None:
    for path in (run.root / name, run.root.parent / "analysis" / name, run.root.parent / Path(name).name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = files(run.root.parent)
    with hold(run), hold_sweep(SweepFolder(run.root.parent)):
        assert files(run.root.parent).items() >= before.items()


def test_leftovers_are_not_sought_behind_a_link(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = partial_path(tmp_path / "elsewhere" / "x")
    elsewhere.parent.mkdir()
    elsewhere.write_text("another run's")
    run.root.mkdir(parents=True)
    (run.root / "link").symlink_to(elsewhere.parent)
    partial_path(run.sae).symlink_to(elsewhere.parent)
    with hold(run):
        assert sorted(path.name for path in run.root.iterdir()) == [".lock", "link"]
    assert elsewhere.exists()


def test_a_sweep_is_waited_for(tmp_path: Path, code: int) -> None:
    sweep = SweepFolder(tmp_path / "sweep")
    with holder(RunFolder(sweep.root), code) as process:
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        with hold_sweep(sweep):
            assert process.wait(60) == 0


@pytest.mark.parametrize("name", ["run", "x_0.12345678", "l1_0.00012345.lock"])
def test_the_marker_of_a_run_is_no_leftover_of_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without_flock(monkeypatch)
    sweep = SweepFolder(tmp_path / "sweep")
    with hold(sweep.run(name)):
        with hold_sweep(sweep):
            pass
        assert is_held(sweep.run(name))
    assert sorted(files(sweep.root)) == [".lock", f"{name}/.lock"]


@pytest.mark.parametrize("mode", ["w", "a+"])
def test_a_lock_file_that_an_earlier_version_left_without_flock_holds_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    without_flock(monkeypatch)
    run.root.mkdir(parents=True)
    (run.root / ".lock").open(mode).close()
    with hold(run):
        pass


@pytest.mark.parametrize(
    ("failing", "problem", "line"),
    [
        ("open", errno.ENOSPC, r"^no disk space left to write .*run: free some, or set paths\.output"),
        (
            "open",
            errno.EMFILE,
            r"^cannot write .*run: Too many open files; allow more open files \(ulimit -n\), then",
        ),
        ("open", errno.EROFS, r"^cannot write .*run: .*$"),
        ("open", errno.EACCES, r"^cannot write .*run: .*$"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, failing: str, problem: int, line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(problem, os.strerror(problem))

    run.root.mkdir(parents=True)
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(SaeSweepError, match=line), hold(run):
        pass
    monkeypatch.undo()
    assert not is_held(run)


def test_a_lock_that_cannot_be_signed_holds(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        with hold(run), pytest.raises(SaeSweepError, match="is held by another process: wait"), hold(run):
            pass
    (run.root / ".lock").write_bytes(b"\xff\x1b")
    with hold(run), pytest.raises(SaeSweepError, match=f"is held by process {os.getpid()} on"), hold(run):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SaeSweepError, match=r"^cannot write .*/file/run: "),
        hold(RunFolder(tmp_path / "file/run")),
    ):
        pass
    with pytest.raises(SaeSweepError, match=r"^cannot write .*/file/run: "):
        Lease(tmp_path / "file" / "run").acquire()


def test_an_error_under_the_lock_is_not_taken_for_one_of_the_lock(run: RunFolder, code: int) -> None:
    with pytest.raises(OSError, match="the disk is on fire"), hold(run):
        raise OSError(errno.EIO, "the disk is on fire")
    assert not is_held(run)


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a lease, on file systems with and without an atomic exchange."""
    if not request.param:
        monkeypatch.setattr(SoftFileLease, "_try_break_stale_lock", lambda self: None)
    return tmp_path / "stream"


def rewrite(lease: Lease, **fields: object) -> None:
    """Replace the marker with another owner's."""
    lines = lease.marker.read_text().splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in fields]
    lease.marker.write_text(
        "".join(f"{line}\n" for line in [*kept, *(f"{k}={v}" for k, v in fields.items())])
    )


def age(lease: Lease, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(lease.marker, (then, then))


def test_a_lease_has_one_owner(folder: Path) -> None:
    lease, other = Lease(folder), Lease(folder)
    with lease.if_free() as held:
        assert held
        lease.check()
        assert other.owner == lease.owner == f"process {os.getpid()} on {os.uname().nodename}"
        with other.if_free() as second:
            assert not second
        assert other.owner is not None
    assert lease.owner is None
    assert files(folder.parent) == {}


def test_the_lease_of_a_process_that_is_gone_is_taken_over(folder: Path) -> None:
    lease, other = Lease(folder), Lease(folder)
    assert lease.acquire()
    rewrite(lease, pid=2**22 + 1, token="other")
    assert other.owner is None
    assert other.acquire()
    other.check()
    lease.release()
    other.check()  # the marker was not its first owner's to remove
    other.release()
    assert files(folder.parent) == {}


def test_another_host_is_judged_by_the_time_of_its_marker(folder: Path) -> None:
    lease, other = Lease(folder), Lease(folder)
    assert lease.acquire()
    rewrite(lease, host="elsewhere", pid=2**22 + 1, token="other")
    age(lease, locks.DEAD_AFTER_S - 20)
    assert other.owner == f"process {2**22 + 1} on elsewhere"
    assert not other.acquire()
    age(lease, locks.DEAD_AFTER_S + 5)
    assert other.owner is None
    assert other.acquire()
    other.check()


def test_a_container_on_this_host_is_another_host(folder: Path) -> None:
    lease = Lease(folder)
    assert lease.acquire()
    rewrite(lease, host=f"{os.uname().nodename}?pidns-f0000abc", pid=2**22 + 1)
    assert lease.owner == f"process {2**22 + 1} on {os.uname().nodename}"


def test_the_owner_that_lost_its_lease_is_told(folder: Path) -> None:
    lease = Lease(folder)
    assert lease.acquire()
    lease.check()
    rewrite(lease, host="elsewhere", pid=7, token="other")
    line = "is now written by process 7 on elsewhere: .* more than 60 s; launch the same command again"
    with pytest.raises(SaeSweepError, match=f"^{folder} {line}"):
        lease.check()
    lease.marker.unlink()
    with pytest.raises(SaeSweepError, match="is now written by nobody"):
        lease.check()


def test_a_marker_is_touched_while_its_owner_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    lease = Lease(folder)
    with lease.if_free():
        age(lease, 1000)
        wait_for(lambda: time.time() - lease.marker.stat().st_mtime < 100)


def test_heartbeats_come_often_enough() -> None:
    assert 3 * locks.HEARTBEAT_S < locks.DEAD_AFTER_S - locks.HEARTBEAT_S


@pytest.mark.parametrize("text", ["", "{", "filelock/2\npid=7"])
def test_a_marker_that_cannot_be_read_is_respected_until_it_is_old(folder: Path, text: str) -> None:
    lease = Lease(folder)
    lease.marker.write_text(text)
    assert lease.owner == "an unknown process"
    assert not lease.acquire()
    age(lease, locks.DEAD_AFTER_S + 5)
    assert lease.owner is None
    assert lease.acquire()


def test_of_two_that_find_a_dead_owner_one_takes_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one, which looked before the other took over, puts the marker back."""
    dead, fast, slow = Lease(folder), Lease(folder), Lease(folder)
    assert dead.acquire()
    rewrite(dead, host="elsewhere", pid=7, token="other")
    age(dead, locks.DEAD_AFTER_S + 5)
    judge, looks = locks._owner, []

    def while_the_other_takes_over(marker: Path) -> str | None:
        verdict = judge(marker)
        looks.append(marker)
        if len(looks) == 1:
            assert fast.acquire()
        return verdict

    monkeypatch.setattr(locks, "_owner", while_the_other_takes_over)
    assert not slow.acquire()
    fast.check()
    fast.release()
    assert files(folder.parent) == {}


RACE = """
import sys, time
from pathlib import Path
from sae_sweep.store import Lease, lock_folder
root = Path(sys.argv[1])
def alone(name):
    (root / name).mkdir()  # raises if another process is inside
    time.sleep(0.02)
    (root / name).rmdir()
with lock_folder(root / "locked"):
    alone("first")
lease = Lease(root / "leased")
assert lease.acquire(-1)
alone("second")
lease.check()
lease.release()
"""


def test_of_commands_that_start_together_one_goes_first(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4


def test_a_full_disk_leaves_no_marker_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """filelock removes its own only if there is room for another name."""

    def acquire(lease: SoftFileLease, *_, **__) -> None:
        Path(lease.lock_file).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    lease = Lease(folder)
    with monkeypatch.context() as patch:
        patch.setattr(SoftFileLease, "acquire", acquire)
        with pytest.raises(SaeSweepError, match=r"no disk space left to write .*stream: free some"):
            lease.acquire()
    assert not lease.marker.exists()
    assert lease.acquire()


@pytest.mark.parametrize(
    ("limits", "runs", "after"),
    [((256, 4096), 73, (256, 4096)), ((256, 4096), 1000, (1096, 4096)), ((256, -1), 5000, (5096, -1))],
)
def test_many_runs_raise_the_limit_of_open_files(monkeypatch, limits, runs, after) -> None:
    now = [limits]
    monkeypatch.setattr(locks.resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(locks.resource, "setrlimit", lambda _, wanted: now.append(wanted))
    locks.allow_holding(runs)
    assert now[-1] == after


def test_more_runs_than_the_system_allows_files_are_refused_before_anything_is_written(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(locks.resource, "getrlimit", lambda _: (256, 256))
    planned = PlannedRun("a", "id", "g", RunConfig(), RunFolder(tmp_path / "a"), {})
    with pytest.raises(SaeSweepError) as caught, prepared([planned] * 200):
        pass
    assert str(caught.value) == (
        "200 runs at once need 296 open files, and the system allows 256: allow more (ulimit -n), "
        "or split the sweep"
    )
    assert not (tmp_path / "a").exists()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
