"""Memory and disk space of this machine, within the limits of its container."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from sae_sweep.store.atomic import disk_errors

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that processes here can still take; page cache counts as free."""
    left = (limit - used + _inactive_file(place) for place, limit, used in _container_limits())
    return min([psutil.virtual_memory().available, *left])


def machine_memory() -> int:
    """Bytes that processes here can have together."""
    return min([psutil.virtual_memory().total, *(limit for _, limit, _ in _container_limits())])


def free_disk(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not be there yet."""
    with disk_errors(folder):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        return shutil.disk_usage(there).free


def _container_limits() -> Iterator[tuple[Path, int, int]]:
    """Yield each control group (v2) of this process that has a limit, with the limit and what is used."""
    with suppress(OSError):
        own = next((line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")), "/")
        folder = _CGROUP / own.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(_CGROUP):
                with suppress(OSError, ValueError):  # no limit ("max"), or no such files here
                    limit, used = (int((place / f"memory.{name}").read_text()) for name in ("max", "current"))
                    yield place, limit, used


def _inactive_file(place: Path) -> int:
    with suppress(OSError):
        lines = (place / "memory.stat").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return 0
