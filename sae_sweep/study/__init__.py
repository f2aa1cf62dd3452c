"""The one paper that is reproduced: published numbers, cells, tables, figures and `task=report`."""
