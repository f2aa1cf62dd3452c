"""Runs the machine's C++ compiler on the kernels' sources."""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_sweep.config import SaeSweepError

SOURCES = Path(__file__).with_name("native")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)
_COMPILE_S = 300
_VERSION_S = 30


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answers."""

    command: tuple[str, ...]
    version: str
    """What it says to --version."""

    def key(self) -> str:
        """Hash of all that determines the library: sources, compiler, flags and processor."""
        sources = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
        parts = [*sources, " ".join((*self.command, *FLAGS)).encode(), self.version.encode(), _processor()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def compile(self, folder: Path, lock: int) -> Path:
        """Compile into a folder, which gets the compiler's temporary files too.

        Args:
            folder: an empty folder.
            lock: an open file whose lock the compiler shares, so that it outlives this process if the
                compiler does.

        Raises:
            SaeSweepError: if the compiler fails, is killed or does not end; quotes what it said.
        """
        to = folder / "kernels.so"
        command = [*self.command, *FLAGS, "-o", str(to), *map(str, sorted(SOURCES.glob("*.cpp")))]
        status, said = _run(command, _COMPILE_S, {"TMPDIR": str(folder)}, [lock])
        if status:
            raise SaeSweepError(f"{self.command[0]} did not compile {SOURCES}: {_reason(status, said)}")
        if not to.is_file():
            raise SaeSweepError(f"{self.command[0]} did not compile {SOURCES}: it wrote no library")
        return to


def find_compiler() -> Compiler:
    """The compiler that the environment variable CXX names, else c++ or g++.

    Raises:
        SaeSweepError: if there is none, or it does not run.
    """
    command = _command()
    return Compiler(command, _run([*command, "--version"], _VERSION_S)[1])


def _command() -> tuple[str, ...]:
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise SaeSweepError(f"the environment variable CXX is not a command: {error}") from error
    if chosen:
        return tuple(chosen)
    found = shutil.which("c++") or shutil.which("g++")
    if found is None:
        raise SaeSweepError("there is no C++ compiler (c++, g++, or what CXX names)")
    return (found,)


def _run(
    command: Sequence[str], limit_s: float, environment: Mapping[str, str] = {}, inherited: Sequence[int] = ()
) -> tuple[int, str]:
    """Exit status and output of a command, which is killed with all that it started if it does not end.

    Its output goes to a file: a pipe would stay open as long as a server that a compiler cache starts.
    """
    try:
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", **environment},
                pass_fds=inherited,
                start_new_session=True,
            )
            try:
                status = process.wait(limit_s)
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            return status, output.read().decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        raise SaeSweepError(f"the C++ compiler {command[0]} did not end within {limit_s:g} s") from error
    except (OSError, ValueError) as error:
        raise SaeSweepError(f"the C++ compiler did not run: {error}") from error


def _reason(status: int, said: str) -> str:
    """The line of a compiler's output that says most."""
    if status < 0:
        return f"it was killed by signal {-status}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for word in ("No space left", "error"):
        for line in lines:
            if word in line:
                return line
    return lines[-1] if lines else f"exit status {status}"


def _processor() -> bytes:
    """Model and instruction sets; the nodes of a cluster share a cache folder and may differ in both."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().encode()
    keys = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(keys)})).encode()
