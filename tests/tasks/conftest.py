"""A small text folder."""

from tests.e2e.conftest import text_folder

__all__ = ["text_folder"]
