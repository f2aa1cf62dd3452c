"""Names of unfinished files and folders, which prove that this program made them.

A process that is killed leaves what it was writing. The next one removes it by its name alone: a mark, the
process, a random number, and a digest of these that nothing else ends in.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sae_sweep.config import digest

_MARK = ".sae_sweep-partial"
_NAME = re.compile(rf"{re.escape(_MARK)}-(\d+-[0-9a-f]{{16}})-([0-9a-f]{{12}})(\.\w+)?")


def partial_path(path: Path) -> Path:
    """A new name beside `path`, with its suffix, for what will become `path` once it is complete."""
    maker = f"{os.getpid()}-{secrets.token_hex(8)}"
    return path.with_name(f"{_MARK}-{maker}-{_proof(maker)}{path.suffix}")


def is_partial(path: Path) -> bool:
    """Whether a name comes from `partial_path`."""
    name = _NAME.fullmatch(path.name)
    return name is not None and name[2] == _proof(name[1])


def remove_partials(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder, and from the folders below it.

    The caller must hold the lock of the folder: those of living processes would be removed too. Links are not
    followed.
    """
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            if is_partial(path):
                remove_partial(path)


def remove_partial(path: Path) -> None:
    """Remove an unfinished file or folder; what cannot be removed stays until the next attempt."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_ours(folder: Path, names: Iterable[str]) -> None:
    """Remove files that this program wrote into a folder, and the folder if nothing else is in it.

    What cannot be removed stays. A link to a folder is not followed.
    """
    if folder.is_symlink():
        return
    remove_partials(folder)
    for name in names:
        remove_partial(folder / name)
    with suppress(OSError):  # not empty, or missing
        folder.rmdir()


def _proof(maker: str) -> str:
    return digest([_MARK, maker])
