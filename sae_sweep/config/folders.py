"""Paths that begin with `~`."""

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """A path with its `~` replaced; one of an unknown user stays as it is (`Path.expanduser` raises)."""
    return Path(os.path.expanduser(path))


def known_home(problems: list[str], key: str, path: str | None) -> None:
    """Append a line to `problems` if a path begins in the home folder of somebody who has none."""
    if path and path.startswith("~") and os.path.expanduser(path) == path:
        user = path.split("/")[0]
        problems.append(f"{key}={path}: {user} is no home folder of a user here; write the whole path")
