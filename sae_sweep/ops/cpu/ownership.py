"""Whether only this user and root can have written a file: a loaded library can do all that we can."""

import grp
import os
import pwd
import stat
from functools import cache
from pathlib import Path

from sae_sweep.config import SaeSweepError

_MAX_BYTES = 1 << 26


class NotOursError(SaeSweepError):
    """Somebody else could have written the file or folder."""


def check_folder(folder: Path) -> Path:
    """The folder's real path, if nobody but us and root can change what is in it or put another in its place.

    A folder above it that all may write, such as /tmp, is no harm if it is sticky: there nobody can rename or
    remove what is not theirs.

    Raises:
        NotOursError: naming the folder, among it and all above it, that somebody else can write.
    """
    real = folder.resolve()
    for place in (real, *real.parents):
        status = place.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotOursError(f"{place} is not a folder")
        if place == real or status.st_uid != _unmapped_owner():
            _check_owner(place, status)
        if not status.st_mode & stat.S_ISVTX:
            _check_writers(place, status)
    return real


def read_file(path: Path) -> bytes:
    """What a file holds, if nobody but us and root can have written it; its folder is checked already.

    Raises:
        NotOursError: if somebody else could have, or if it is a link, a folder or anything but a file.
        OSError: if it cannot be read.
    """
    if path.is_symlink():
        raise NotOursError(f"{path} is a link")
    # a pipe in its place must not block
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise NotOursError(f"{path} is not a compiled library")
        _check_owner(path, status)
        _check_writers(path, status)
        return file.read()


@cache
def _unmapped_owner() -> int | None:
    """Owner shown for the files of users whom a container's user namespace leaves out, often root among them.

    Folders above ours may be theirs: they cannot make files that are ours.
    """
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise NotOursError(f"{path} belongs to user {status.st_uid}")


def _check_writers(path: Path, status: os.stat_result) -> None:
    if status.st_mode & stat.S_IWOTH:
        raise NotOursError(f"{path} may be written by everybody (chmod o-w)")
    if status.st_mode & stat.S_IWGRP and not _has_only_us(status.st_gid):
        raise NotOursError(f"{path} may be written by group {status.st_gid} (chmod g-w)")


def _has_only_us(gid: int) -> bool:
    """Whether a group is the user's own: of the same name, without other members, as on many systems."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
