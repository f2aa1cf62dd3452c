"""Commands of sae_sweep in a forked child, which has imported everything, or in a process of its own."""

import gc
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 120.0
"""A command of the trials takes 1 to 3 s on an idle machine; one that takes this long hangs."""
MEMORY_BYTES = 6 * 2**30
"""Address space that a command may add: a forged size must not take the machine down."""
ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None
    """Exit code, negative for a signal, None if it was killed because it hung."""
    out: str
    err: str
    left: tuple[str, ...] = ()
    """Command lines of processes that it left behind."""


def import_everything() -> None:
    """Import what commands import, once, so that children start within milliseconds."""
    import lightning.pytorch
    import matplotlib.backends.backend_agg
    import torch

    import sae_sweep.__main__
    import sae_sweep.launch.group
    import sae_sweep.study.report
    import sae_sweep.tasks.cache
    import sae_sweep.tasks.match
    import sae_sweep.tasks.plan
    import sae_sweep.tasks.status

    del lightning, matplotlib, sae_sweep
    torch.set_num_threads(1)
    gc.freeze()  # children leave what is here out of garbage collections, and so copy none of its pages


def forked(call: Callable[[], object], folder: Path, limit_s: float | None = None) -> Ended:
    """Call a function in a forked child that works in `folder`; its output goes to files beside it."""
    files = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(call, folder, files))
    code = _wait(child, limit_s or LIMIT_S)
    left = _end_group(child)
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return Ended(code, out, err, left)


def command(words: Sequence[str], folder: Path, before: Callable[[], object] | None = None) -> Ended:
    """Type a command in `folder`; `before` is called in its child first."""

    def call() -> None:
        from sae_sweep.__main__ import main

        if before is not None:
            before()
        sys.argv = ["sae_sweep", *words]
        main()

    return forked(call, folder)


def process(words: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command as a user does, in a process and a session of its own."""
    files = [(folder.parent / f"{folder.name}.{name}").open("wb") for name in ("out", "err")]
    optimised = ["-O"] if sys.flags.optimize else []
    started = subprocess.Popen(
        [sys.executable, *optimised, "-m", "sae_sweep", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=files[0],
        stderr=files[1],
        start_new_session=True,
    )
    for file in files:
        file.close()
    return started


def end(started: subprocess.Popen[bytes], folder: Path, limit_s: float = 2 * LIMIT_S) -> Ended:
    """Wait for a command that `process` started."""
    code: int | None
    try:
        code = started.wait(limit_s)
    except subprocess.TimeoutExpired:
        code = None
    left = _end_group(started.pid)
    started.wait()
    texts = ((folder.parent / f"{folder.name}.{name}").read_text(errors="replace") for name in ("out", "err"))
    return Ended(code, *texts, left)


def _in_child(call: Callable[[], object], folder: Path, files: Sequence[Path]) -> int:
    """Run `call` as the main program of the child; returns its exit code."""
    try:
        os.setsid()
        for number, file in enumerate(files, 1):
            opened = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
            os.close(opened)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code & 255


def _wait(child: int, limit_s: float) -> int | None:
    until, pause_s = time.monotonic() + limit_s, 0.002
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause_s)
        pause_s = min(0.02, pause_s * 1.3)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _end_group(session: int) -> tuple[str, ...]:
    """End what a command left running; returns command lines."""
    left = [found for found in session_of(session) if found]
    if left:
        time.sleep(0.3)  # a child that is just ending is no orphan
        left = [found for found in session_of(session) if found]
    names = []
    for pid, name in left:
        names.append(name)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            names.pop()
    return tuple(names)


def session_of(session: int) -> list[tuple[int, str]]:
    """Processes of a session: id and command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(entry.name), line.strip()))
            except (OSError, ValueError):
                continue
    return found
