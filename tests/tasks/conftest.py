"""Fixture of the whole-sweep tests: a small text folder."""

from tests.e2e.conftest import text_folder

__all__ = ["text_folder"]
