"""Text from outside as Markdown that shows it: names, values, settings."""

import re

from sae_sweep.config import escaped

_ACTIVE = re.compile(
    r"[\\`*\[\]<>|$~]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|^(?=[-+#=])|^(\d+)(?=[.)](?:\s|$))"
)
"""What Markdown reads: punctuation, underscores at the edge of a word, marks at the start of a line."""


def inline(text: object) -> str:
    """Text that reads in Markdown as it is, also in the cell of a table."""
    return _ACTIVE.sub(lambda found: f"{found[1]}\\" if found[1] else f"\\{found[0]}", escaped(text))


def code(text: object) -> str:
    """Text as a code span, also in the cell of a table; its own backticks are shown, too."""
    shown = escaped(text).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"
