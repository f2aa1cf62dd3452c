"""The small text folder of the whole-sweep tests."""

from tests.e2e.conftest import text_folder

__all__ = ["text_folder"]
