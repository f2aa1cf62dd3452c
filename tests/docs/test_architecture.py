"""The code of docs/adding-an-architecture.md, in a copy of the package, passes the shared tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks

COPIED = ("sae_sweep", "conf", "tests", "pyproject.toml")
TRAINED = (
    "architecture=panneal lp_coefficient=0.004 model=synthetic dataset=synthetic layer=0 dictionary=4 "
    "batch=512 tokens=5_120 activations.buffer_tokens=4096 evaluation.tokens=512 tracking=none sweep=annealed"
)


def write(block: Block, root: Path) -> None:
    """Change a copy of the repository as a block says: a new file, lines above one, or lines replaced."""
    path = root / block.marks["file"]
    if block.language == "diff":
        removed = [line[1:] for line in block.text.splitlines() if line.startswith("-")]
        added = [line[1:] for line in block.text.splitlines() if line.startswith("+")]
        _replace(path, "\n".join(removed), "\n".join(added))
    elif above := block.marks.get("above"):
        _replace(path, above, f"{block.text}\n\n{above}")
    else:
        assert not path.exists(), f"{block.where}: {path.name} is there already"
        path.write_text(block.text)


def _replace(path: Path, old: str, new: str) -> None:
    lines = f"\n{path.read_text()}"
    assert lines.count(f"\n{old}\n") == 1, f"{path.name} has not one {old!r}"
    path.write_text(lines.replace(f"\n{old}\n", f"\n{new}\n")[1:])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its tests, changed as the page says."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    changes = [block for block in blocks(ROOT / "docs/adding-an-architecture.md") if "file" in block.marks]
    assert len(changes) == 6
    for change in changes:
        write(change, tmp_path)
    return tmp_path


@pytest.mark.slow(reason="imports torch in two new processes, which test and train")
def test_the_shared_tests_and_a_sweep_take_it(copy: Path) -> None:
    python, environment = [sys.executable, "-m"], os.environ | {"PYTHONPATH": str(copy)}
    for words in ("pytest -q -x -k panneal tests/saes", f"sae_sweep {TRAINED}"):
        command = [*python, *words.split()]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (run,) = copy.glob("multirun/annealed/*/metrics.json")
    assert run.parent.name.startswith("synthetic_L0_synthetic_panneal_x4_lpc0.004_s49")
