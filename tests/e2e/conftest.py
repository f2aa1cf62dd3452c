"""Fixtures: a small text folder, and overrides for runs of the bundled model that take a second."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder of forty distinct files of about 300 words."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        words = (f"word{(number * 7 + i * i) % 97} of file {number}," for i in range(75))
        (folder / f"{number:02}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which is a quarter of a small sweep's time; other tests check the figures."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **keys: file.write(b""))
    monkeypatch.setattr(Figure, "findobj", lambda self, *_: [])  # lays axes out


@pytest.fixture
def small(text_folder: Path) -> list[str]:
    """Overrides of a run that takes a second."""
    return [
        "model=gpt2-pico",
        "dataset=files",
        f"dataset.path={text_folder}",
        "layer=2",
        "dictionary=4",
        "tokens=10_240",
        "batch=512",
        "activations.buffer_tokens=4096",
        "evaluation.tokens=2048",
        "tracking.log_every=5",
    ]
