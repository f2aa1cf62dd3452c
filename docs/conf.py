"""How Sphinx builds the pages of this folder: `make docs`."""

import sae_sweep

project = "sae_sweep"
author = "the authors of sae_sweep"
release = version = sae_sweep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
