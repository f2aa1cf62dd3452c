"""Places for caches and settings where the user's home folder is missing or cannot be written.

A container's user often has no entry in the list of users, and `HOME` unset or `/`. Libraries then fail, each
in its own way, or write to a folder named `~`.
"""

import logging
import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_BELOW_HOME = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "WANDB_CONFIG_DIR": ".config/wandb",
    "TRITON_CACHE_DIR": ".triton/cache",
}
"""Folders that we and libraries write to, by the variables that name others."""


def provide_home() -> None:
    """Name a folder of this user's below the temporary one for what cannot be written at home; says so once.

    What can be read at home is still read there. Call it before libraries are imported; processes that this
    one starts inherit it.
    """
    if not _has_name():
        os.environ.setdefault("LOGNAME", str(os.geteuid()))
    home = _home()
    missing = [name for name, below in _BELOW_HOME.items() if _is_missing(name, home and home / below)]
    if not missing:
        return
    spare = _spare()
    _keep_downloads(home, missing)
    if home is None:
        os.environ["HOME"] = str(spare)
    os.environ.update({name: str(spare / _BELOW_HOME[name]) for name in missing})
    said = "there is no home folder (HOME)" if home is None else f"the home folder {home} cannot be written"
    log.warning("%s: caches and settings are in %s, unless XDG_CACHE_HOME names another", said, spare)


def user_cache() -> Path:
    """The user's folder for caches, also where there is no home folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (_home() or _spare()) / ".cache"


def _home() -> Path | None:
    home = os.path.expanduser("~")  # not `Path.home`, which raises
    return Path(home) if os.path.isabs(home) else None


def _has_name() -> bool:
    with suppress(KeyError):
        pwd.getpwuid(os.geteuid())
        return True
    return any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME"))


def _is_missing(variable: str, usual: Path | None) -> bool:
    return not os.environ.get(variable) and (usual is None or not _can_be_made(usual))


def _can_be_made(folder: Path) -> bool:
    for place in (folder, *folder.parents):
        if os.path.lexists(place):  # not `Path.exists`, which raises below a folder of somebody else's
            return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
    return False


def _keep_downloads(home: Path | None, missing: list[str]) -> None:
    """Let the hub's library go on reading what it has at home."""
    downloads = home and home / ".cache" / "huggingface"
    if "XDG_CACHE_HOME" in missing and downloads and os.path.isdir(downloads):
        os.environ.setdefault("HF_HOME", str(downloads))


def _spare() -> Path:
    """A folder that only this user can write: the same one in each process, or else a new one."""
    folder = Path(tempfile.gettempdir()) / f"sae_sweep-{os.geteuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
        if stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="sae_sweep-"))
