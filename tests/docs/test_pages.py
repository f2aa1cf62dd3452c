"""README and the pages of docs/: their commands compose, their Python runs, their links lead somewhere."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet

import sae_sweep
from sae_sweep.cli import sweeper
from tests.conftest import Cli
from tests.docs.pages import PAGES, ROOT, Block, all_blocks
from tests.e2e.conftest import small, text_folder, without_figures

__all__ = ["small", "text_folder", "without_figures"]

BLOCKS = all_blocks()
OURS = (["python", "-m", "sae_sweep"], ["sae-sweep"])
NEEDS = {"another library", "code above", "docker", "gpu", "hub", "minutes", "slurm", "wandb"}
"""What a marked block needs that the tests do not have."""


def ours(words: list[str]) -> list[str] | None:
    """Arguments of a command of this package; None for other commands."""
    return next((words[len(start) :] for start in OURS if words[: len(start)] == start), None)


def commands() -> set[tuple[str, ...]]:
    """Arguments of the commands of all pages, those that differ in the sweep's name once.

    An experiment alone is left out: its own test composes it.
    """
    shell = (block for block in BLOCKS if block.language == "bash")
    runnable = (block for block in shell if block.marks.get("needs") != "code above")
    found = {
        tuple("sweep=x" if word.startswith("sweep=") else word for word in ours(words) or ())
        for block in runnable
        for words in block.commands
    }
    return {words for words in found if len(words) > 1}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_blocks_are_of_known_kinds_and_others_say_what_they_need(block: Block) -> None:
    assert block.language in ("bash", "python", "yaml", "diff", "text")
    needs = set(block.marks.get("needs", "").split(", ")) - {""}
    assert needs <= NEEDS
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in block.commands if block.language == "bash" else []:
        if words[0] == "make":
            assert set(words[1:]) <= targets
        elif ours(words) is None and words[0] not in ("pip", "cd", "ls"):
            assert needs, f"{words[0]} is not of this package"


@pytest.mark.slow(reason="composes some forty commands")
def test_every_command_composes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where its task would begin."""
    carried_out: list[str] = []

    def find(task: str) -> Callable[..., int]:
        return lambda request: carried_out.append(task) or 0

    monkeypatch.setattr(sweeper, "find", find)
    for block in BLOCKS:
        if (name := block.marks.get("file", "")).startswith("my-sweeps/"):
            Path(name).parent.mkdir(parents=True)
            Path(name).write_text(block.text)
    refused = {words: result.err for words in commands() if (result := cli(*words)).code}
    assert refused == {}
    assert len(carried_out) == len(commands()) > 20


@pytest.mark.slow(reason="trains and compares two SAEs")
@pytest.mark.usefixtures("without_figures")
def test_python_blocks_run_on_a_small_sweep(cli: Cli, small: list[str]) -> None:
    """Blocks of a page share their names. Also: a sweep's tables have its swept keys as columns."""
    result = cli(*small, "seed=42,49", "sweep=quickstart", "tracking=none", "evaluation.tokens=512")
    assert result.code == 0, result.err
    names: dict[str, dict[str, Any]] = {}
    for block in BLOCKS:
        if block.language == "python" and not {"needs", "file"} & block.marks.keys():
            exec(compile(block.text, block.where, "exec"), names.setdefault(block.page.name, {}))
    readme, results = names["README.md"], names["results.md"]
    assert 0 <= readme["result"].ratio_b_in_a <= 1
    expected = readme["b"].W_dec[readme["result"].index_a[readme["feature"]]]
    torch.testing.assert_close(readme["nearest"], expected)
    assert results["features"].shape == (10, results["sae"].d_sae)
    assert sorted(results["pairs"][["seed_a", "seed_b"]].iloc[0]) == [42, 49]
    assert results["exact"].index_a.shape == results["a"].W_dec.shape[:1]
    api = names["api.md"]
    assert 0 <= api["sfr"] <= 1
    assert api["differing"].documents_q[api["top"]].max() < 1
    assert len(api["sampled"]) == 2
    stored = parquet.read_table("multirun/quickstart/runs.parquet").to_pylist()
    assert [row["state"] for row in stored] == ["done", "done"]
    assert stored[0]["trained_tokens"] == 10_240


def test_links_of_the_readme_and_its_neighbours_lead_somewhere() -> None:
    """The build of the site checks those between its pages."""
    for page in (path for path in PAGES if path.parent == ROOT):
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert missing == [], page.name


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 130


def test_the_citation_is_of_this_version_and_the_templates_are_forms() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sae_sweep.__version__
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir() if path.name != "config.yml"]
    assert all({"name", "description", "body"} <= yaml.safe_load(form.read_text()).keys() for form in forms)
