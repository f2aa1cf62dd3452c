"""Which compiled library is loaded, what becomes of damaged ones, and what a compiler may do wrong."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.cpu import CPUKernels, compiler, library
from sae_sweep.ops.cpu.ownership import NotOursError, check_folder, read_file
from sae_sweep.signals import Interrupted
from sae_sweep.store import cache_folder

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library from the real compiler, for others that only copy it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
        CPUKernels(cache_folder(None))
        key = compiler.find_compiler().key()
    whole = [path for path in (cache_folder(None) / "kernels").glob(f"{key}-*.so") if is_whole(path)]
    return shutil.copy(whole[0], tmp_path_factory.mktemp("compiled") / "whole.so")


def is_whole(path: Path) -> bool:
    return path.name == library._name(path.name[:16], path.read_bytes())


@pytest.fixture
def cache(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a compiler that copies `compiled`, counting in the file `compilations`."""
    write_compiler(tmp_path, f'echo once >> {tmp_path}/compilations; cp {compiled} "$2"', monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "cache"


def write_compiler(folder: Path, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that does `action`, with the output file as "$2"."""
    path = folder / "c++"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\nwhile [ "$1" != -o ]; do shift; done\n{action}\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def compilations(cache: Path) -> int:
    file = cache.parent / "compilations"
    return len(file.read_text().splitlines()) if file.exists() else 0


def kept(cache: Path) -> Path:
    [path] = (cache / "kernels").glob("*.so")
    return path


def leftovers(*parents: Path) -> list[Path]:
    return [path for parent in parents if parent.exists() for path in parent.glob(".sae_sweep-*")]


def loads(cache: Path) -> bool:
    return library.compiled_kernels(cache).panel_features() >= 0


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_library_is_compiled_once(cache: Path):
    assert loads(cache)
    assert loads(cache)
    assert compilations(cache) == 1
    assert is_whole(kept(cache))
    assert not kept(cache).stat().st_mode & 0o022


def test_one_of_the_users_folder_is_not_compiled_again_for_another(cache: Path):
    assert loads(cache_folder(None))
    assert loads(cache)
    assert compilations(cache) == 1
    assert not cache.exists()
    cut(kept(cache_folder(None)))
    assert loads(cache)
    assert compilations(cache) == 2
    assert is_whole(kept(cache))


@pytest.mark.parametrize("damage", [cut, flip, empty, replace_by_link, replace_by_pipe, open_to_all])
def test_a_damaged_library_is_compiled_again(cache: Path, damage):
    assert loads(cache)
    damage(kept(cache))
    assert loads(cache)
    assert compilations(cache) == 2
    assert is_whole(kept(cache))
    assert kept(cache).is_file()
    assert not kept(cache).is_symlink()
    assert loads(cache)
    assert compilations(cache) == 2


def test_a_folder_in_place_of_the_library(cache: Path, caplog):
    assert loads(cache)
    path = kept(cache)
    path.unlink()
    path.mkdir()
    assert loads(cache)
    assert compilations(cache) == 2
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "every start compiles them" in record.getMessage()
    assert not leftovers(cache / "kernels")


def test_a_library_that_is_whole_and_cannot_be_loaded_is_passed_over(cache: Path):
    """As on a node with another C library: both are kept."""
    key = compiler.find_compiler().key()
    (cache / "kernels").mkdir(parents=True)
    (cache / "kernels" / library._name(key, b"of another node")).write_bytes(b"of another node")
    assert loads(cache)
    assert len(list((cache / "kernels").glob("*.so"))) == 2
    assert loads(cache)
    assert compilations(cache) == 1


def test_what_is_loaded_does_not_change_with_its_file(cache: Path):
    """A library that is mapped from its file ends the process when that is cut off."""
    code = (
        "import sys, os, torch; from pathlib import Path; from sae_sweep.ops.cpu import CPUKernels\n"
        "cache = Path(sys.argv[1]); kernels = CPUKernels(cache)\n"
        "[os.truncate(path, 0) for path in (cache / 'kernels').glob('*.so')]\n"
        "print(kernels.topk(torch.tensor([[1.0, 2.0]]), 1)[0].item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write(cache: Path, mode: int, caplog):
    """What it holds is not loaded; the user's own cache folder serves in its place."""
    assert loads(cache)
    if mode == 0o770:
        os.chown(cache, -1, other_group(cache))
    cache.chmod(mode)
    assert loads(cache)
    assert loads(cache)
    assert compilations(cache) == 2
    assert is_whole(kept(cache_folder(None)))
    assert not caplog.records


def other_group(cache: Path) -> int:
    """A group that is not the user's own."""
    groups = [1] if ROOT else [gid for gid in os.getgroups() if gid != cache.stat().st_gid]
    return groups[0] if groups else pytest.skip("needs a second group")


def test_no_folder_of_ours_at_all(cache: Path, caplog):
    for folder in (cache, cache_folder(None)):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    assert loads(cache)
    [record] = caplog.records
    assert record.getMessage() == (
        "the compiled kernels cannot be kept, so every start compiles them: "
        f"{cache} may be written by everybody (chmod o-w)"
    )
    assert not leftovers(cache / "kernels", cache.parent / "tmp")


def test_a_cache_folder_that_cannot_be_made(cache: Path, monkeypatch, caplog):
    cache.write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert loads(cache)
    [record] = caplog.records
    assert f"cannot be kept, so every start compiles them: {cache}: File exists" in record.getMessage()
    assert cache.read_text() == "a file"


def test_no_safe_folder_even_for_temporary_files(cache: Path):
    cache.parent.chmod(0o777)
    with pytest.raises(SaeSweepError, match=r"no folder is safe to compile the kernels in: .* everybody"):
        library.compiled_kernels(cache)
    assert compilations(cache) == 0
    assert not leftovers(cache.parent / "tmp")


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
@pytest.mark.parametrize("above", [False, True])
def test_a_folder_or_library_of_another_user(cache: Path, above: bool):
    assert loads(cache)
    os.chown(cache if above else kept(cache), 12345, -1)
    assert loads(cache)
    assert compilations(cache) == 2


def test_who_may_write_the_folders_above(tmp_path: Path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    assert check_folder(inner) == inner.resolve()
    inner.parent.chmod(0o1777)  # like /tmp
    assert check_folder(inner) == inner.resolve()
    inner.parent.chmod(0o777)
    with pytest.raises(NotOursError, match="outer may be written by everybody"):
        check_folder(inner)
    link = tmp_path / "link"
    link.symlink_to(inner)
    with pytest.raises(NotOursError, match="outer may be written by everybody"):
        check_folder(link)
    with pytest.raises(NotOursError, match="is a link"):
        read_file(link)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_folders_of_users_outside_a_container(tmp_path: Path, monkeypatch):
    """They may be above ours, which must be our own."""
    inner = tmp_path / "inner"
    inner.mkdir()
    os.chown(tmp_path, 65534, -1)
    monkeypatch.setattr("sae_sweep.ops.cpu.ownership._unmapped_owner", lambda: 65534)
    assert check_folder(inner) == inner.resolve()
    with pytest.raises(NotOursError, match="belongs to user 65534"):
        check_folder(tmp_path)
    monkeypatch.setattr("sae_sweep.ops.cpu.ownership._unmapped_owner", lambda: None)
    with pytest.raises(NotOursError, match="belongs to user 65534"):
        check_folder(inner)


def test_a_group_of_the_users_own_may_write(tmp_path: Path, monkeypatch):
    """As with umask 002 on systems that give each user a group."""
    tmp_path.chmod(0o775)
    monkeypatch.setattr("sae_sweep.ops.cpu.ownership._has_only_us", lambda gid: True)
    assert check_folder(tmp_path)
    monkeypatch.setattr("sae_sweep.ops.cpu.ownership._has_only_us", lambda gid: False)
    with pytest.raises(NotOursError, match="may be written by group"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("echo 'a.cpp: error: no room' >&2; exit 1", r"did not compile .*native: a.cpp: error: no room$"),
        ("echo 'ld: No space left on device'; echo error: 1; exit 1", r"ld: No space left on device$"),
        ("kill -9 $$", r"it was killed by signal 9$"),
        ("exit 0", r"it wrote no library$"),
        ("exit 3", r"exit status 3$"),
        ('echo junk > "$2"', r"the compiled kernels cannot be loaded: .*"),
        ('cp /lib/x86_64-linux-gnu/libm.so.6 "$2" || cp /lib64/libm.so.6 "$2"', "cannot be loaded: .*symbol"),
    ],
)
def test_a_compiler_that_fails(cache: Path, monkeypatch, action, said):
    write_compiler(cache.parent, action, monkeypatch)
    with pytest.raises(SaeSweepError, match=said):
        library.compiled_kernels(cache)
    assert not list((cache / "kernels").iterdir())
    assert not leftovers(cache.parent / "tmp")


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("/no/such/compiler", r"the C\+\+ compiler did not run: .*/no/such/compiler"),
        ("c++ 'a", r"the environment variable CXX is not a command: No closing quotation"),
        ("/", r"the C\+\+ compiler did not run: .*"),
    ],
)
def test_a_compiler_that_cannot_be_run(cache: Path, monkeypatch, cxx, said):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(SaeSweepError, match=said):
        library.compiled_kernels(cache)


def test_no_compiler(cache: Path, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(SaeSweepError, match=r"there is no C\+\+ compiler"):
        library.compiled_kernels(cache)


def test_a_compiler_that_hangs_is_killed_with_its_children(cache: Path, monkeypatch):
    write_compiler(cache.parent, f"sleep 60 & echo $! > {cache.parent}/child; wait", monkeypatch)
    monkeypatch.setattr(compiler, "_COMPILE_S", 2.5)
    with pytest.raises(SaeSweepError, match=r"did not end within 2.5 s$"):
        library.compiled_kernels(cache)
    assert wait_for(lambda: not is_alive(int((cache.parent / "child").read_text())))
    assert not leftovers(cache / "kernels")


def test_a_stop_kills_the_compiler(cache: Path, monkeypatch):
    """Any signal whose handler raises, in the midst of a compilation."""
    write_compiler(cache.parent, f"echo $$ > {cache.parent}/child; sleep 60", monkeypatch)

    def stop(signum, frame):
        raise Interrupted(signum)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 2.5)
    try:
        with pytest.raises(Interrupted):
            library.compiled_kernels(cache)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert wait_for(lambda: not is_alive(int((cache.parent / "child").read_text())))
    assert not leftovers(cache / "kernels")


def wait_for(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_leftovers_of_a_killed_compilation_go(cache: Path, compiled, monkeypatch):
    """Not as long as the compiler that it started still runs, nor what another process compiles."""
    (cache / "kernels").mkdir(parents=True)
    write_compiler(cache.parent, f'echo $$ > {cache.parent}/child; sleep 60; cp {compiled} "$2"', monkeypatch)
    worker = multiprocessing.get_context("fork").Process(target=library.compiled_kernels, args=(cache,))
    worker.start()
    assert wait_for(lambda: (cache.parent / "child").exists() and (cache.parent / "child").read_text())
    child = int((cache.parent / "child").read_text())
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    [left] = leftovers(cache / "kernels")
    write_compiler(cache.parent, f'cp {compiled} "$2"', monkeypatch)
    library._remove_leftovers(cache / "kernels")
    assert left.exists()
    os.killpg(child, signal.SIGKILL)
    assert wait_for(lambda: not is_alive(child))
    foreign = [cache / "kernels" / name for name in (".sae_sweep-build-notes", ".other.so.tmp")]
    for path in foreign:
        path.write_text("not ours")
    assert wait_for(lambda: loads(cache) and not left.exists())
    assert all(path.read_text() == "not ours" for path in foreign)


def test_a_compilation_in_progress_is_not_touched(cache: Path):
    cache.mkdir()
    with library._building(cache) as (build, _):
        library._remove_leftovers(cache)
        assert build.exists()
        with (build / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not build.exists()


def test_compilations_at_the_same_time(cache: Path):
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(loads(cache))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    assert is_whole(kept(cache))
    assert not leftovers(cache / "kernels")


def test_a_cache_that_cannot_be_written_serves_if_it_is_filled(cache: Path, monkeypatch, caplog):
    assert loads(cache)
    monkeypatch.setattr(library.tempfile, "mkdtemp", lambda **_: pytest.fail("nothing is to be compiled"))
    assert loads(cache)
    assert not caplog.records


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB from which nothing may be executed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "noexec,size=64k,mode=755"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_without_execution(cache: Path, small_disk: Path, compiled, monkeypatch):
    with pytest.raises(SaeSweepError, match=r"did not compile .*: .*No space left on device$"):
        loads(small_disk)
    assert not leftovers(small_disk / "kernels")
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert loads(small_disk)
    assert kept(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = compilations(cache)
    assert loads(small_disk)
    assert compilations(cache) == before
    kept(small_disk)
