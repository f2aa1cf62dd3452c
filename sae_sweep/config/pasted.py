"""Words of a command line that can be pasted into a shell."""

import re
import shlex
from pathlib import Path

from sae_sweep.config.names import escaped

_PLAIN = re.compile(r"[A-Za-z/.][\w/.+-]*", re.ASCII)
_CONSTANTS = ("null", "true", "false", "nan", "inf")
"""Words that Hydra takes for something else than text."""


def pasted(path: Path | str) -> str:
    """A path as a shell takes it: quoted where it must be."""
    return escaped(shlex.quote(str(path)))


def override(key: str, value: Path | str) -> str:
    """`key=value` as a shell and Hydra take it, with the value as text whatever it looks like."""
    text = str(value)
    if not _PLAIN.fullmatch(text) or text.lower() in _CONSTANTS:
        text = (
            '"' + re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'
        )
    return pasted(f"{key}={text}")


def shown_path(path: Path) -> str:
    """A path for the terminal: relative to the working directory where it is below it, and quoted."""
    absolute = path.absolute()
    here = Path.cwd()
    return pasted(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
