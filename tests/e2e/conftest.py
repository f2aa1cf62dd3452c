"""A small text folder and the words that make a run of the bundled model take seconds."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Forty files of about 300 words, no two alike."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        words = (f"word{(number * 7 + i * i) % 97} of file {number}," for i in range(75))
        (folder / f"{number:02}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is a quarter of the time of a small sweep, and other tests look at the figures."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **keys: Path(path).touch())


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
