"""How Sphinx builds the pages of this folder: `make docs`."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import sae_sweep

project = "sae_sweep"
author = "the authors of sae_sweep"
release = version = sae_sweep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sae_sweep {release}"
html_show_copyright = False

myst_heading_anchors = 3
"""Headings down to this level can be linked to, as on GitHub."""
default_role = "literal"
"""Docstrings mark code with single backticks."""
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def read_sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Read the sections Args, Returns and Raises; napoleon would take `a: b` of a field for its type."""
    if what not in ("attribute", "property"):
        config = Config(napoleon_use_rtype=False)
        lines[:] = GoogleDocstring(lines, config, app, what, name, obj, options).lines()
    elif lines[0].startswith("Alias for field number"):  # a named tuple's field without a docstring
        lines.clear()


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("autodoc-process-docstring", read_sections)
