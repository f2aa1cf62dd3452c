"""Fills the small disk of a test."""

from contextlib import suppress
from pathlib import Path


def fill_up(disk: Path, left: int = 0) -> None:
    """Leave `left` bytes of a file system, in whole pages; `left` may grow, as if somebody made room."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    with filler.open("rb+") as file:
        file.truncate(max(0, filler.stat().st_size - left))
