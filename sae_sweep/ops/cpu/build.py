"""Compiles the C++ sources for this machine into the cache folder."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from sae_sweep.config import SaeSweepError
from sae_sweep.store import write_atomic

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
_TIMEOUT_S = 300


def build(cache: Path) -> Path:
    """The compiled library, built first unless the cache folder already has it.

    The compiler is the one that the environment variable CXX names, else c++ or g++. Processes that build
    at the same time each write the whole file.

    Raises:
        SaeSweepError: if there is no compiler, or it fails; quotes what the compiler said.
    """
    compiler = _compiler()
    library = cache / "kernels" / f"{_key(compiler)}.so"
    if not library.exists():
        write_atomic(library, lambda temporary: _compile(compiler, temporary))
    return library


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX")
    if chosen:
        return shlex.split(chosen)
    found = shutil.which("c++") or shutil.which("g++")
    if found is None:
        raise SaeSweepError("there is no C++ compiler (c++, g++, or what CXX names)")
    return [found]


def _compile(compiler: list[str], to: Path) -> None:
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(to), *map(str, sorted(SOURCES.glob("*.cpp")))],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SaeSweepError(f"the C++ compiler did not run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise SaeSweepError(f"{compiler[0]} did not compile {SOURCES}: {first}")


def _key(compiler: list[str]) -> str:
    """Hash of all that determines the library: sources, compiler, flags and processor."""
    sources = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    parts = [*sources, " ".join((*compiler, *FLAGS)).encode(), _version(compiler), _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _version(compiler: list[str]) -> bytes:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SaeSweepError(f"the C++ compiler did not run: {error}") from error


def _processor() -> bytes:
    """Model and instruction sets; the nodes of a cluster share a cache folder and may differ in both."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().encode()
    keys = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(keys)})).encode()
