"""Mixtures on the command line: what the weights name, in lists and in one line of error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweep.config import DomainDataset, EmbeddedDataset, MixDataset
from sae_sweep.plan import Plan
from tests.conftest import Cli

DOCS, CODE = "dataset.weights.stdlib_docs", "dataset.weights.stdlib_code"


def test_weights_advance_together_and_name_the_runs(planned: Callable[..., Plan]) -> None:
    plan = planned("dataset=mix", f"{DOCS}=1,0.5,0", f"{CODE}=0,0.5,1", f"zip=[{DOCS},{CODE}]")
    labels = ["stdlib_docs", "stdlib_docs-0.5-stdlib_code-0.5", "stdlib_code"]
    assert [run.name for run in plan.runs] == [f"gpt2-small_L8_{label}_topk_x16_k16_s49" for label in labels]
    mixed = plan.runs[1].config.dataset
    assert isinstance(mixed, MixDataset)
    assert mixed.parts == {name: EmbeddedDataset(name=name) for name in ("stdlib_docs", "stdlib_code")}


def test_a_text_of_ones_own_is_named_by_its_file(planned: Callable[..., Plan], tmp_path: Path) -> None:
    file = tmp_path / "mine" / "dataset" / "novels.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults:\n  - /schema/dataset/files@_here_\nname: novels\npath: texts\n")
    plan = planned(
        f"--config-dir={tmp_path / 'mine'}",
        "dataset=mix",
        "dataset.weights={novels:0.25,owt:0.75}",
        "dataset.name=m",
    )
    assert plan.runs[0].name == "gpt2-small_L8_m_topk_x16_k16_s49"
    assert plan.runs[0].config.dataset.as_dict()["parts"]["novels"]["path"] == "texts"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["dataset.weights={owt:0.75,pile:0.2}"],
            "dataset.weights sum to 0.95 (owt-0.75-pile-0.2): they must sum to 1",
        ),
        (["dataset.weights={owt:0,pile:0}"], "dataset.weights sum to 0 (owt-0-pile-0): they must sum to 1"),
        (["dataset.weights={owt:nan,pile:1}"], "dataset.weights.owt=nan: must be between 0 and 1"),
        (["dataset.weights={owt:0.5,owt:0.5}"], "dataset.weights sum to 0.5 (owt): they must sum to 1"),
        (["dataset.weights={mix:1}"], "dataset.weights.mix: a MixDataset cannot be part of a mixture"),
        (["dataset.weights={novels:1}"], "dataset.weights.novels: not one of domain, faithful, files,"),
        (["dataset.weights={owt:much}"], "Value 'much' of type 'str' could not be converted to Float"),
        ([], "dataset=mix needs weights: dataset.weights={stdlib_docs:0.75,stdlib_code:0.25}"),
        (["+dataset.parts={a:{}}", "dataset.weights.owt=1"], "dataset.parts"),
    ],
)
def test_a_wrong_mixture_is_one_line(cli: Cli, words: list[str], problem: str) -> None:
    result = cli("dataset=mix", *words)
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert problem in line


def test_a_domain_is_named_by_its_keywords(planned: Callable[..., Plan]) -> None:
    (run,) = planned("dataset=domain", "dataset.of=stdlib_code", "dataset.keywords=[asyncio,await]").runs
    assert run.name == "gpt2-small_L8_domain_topk_x16_k16_s49_of-stdlib_code_keywords-asyncio+await"
    domain = run.config.dataset
    assert isinstance(domain, DomainDataset)
    assert (domain.source, domain.words) == (EmbeddedDataset(name="stdlib_code"), ["asyncio", "await"])


def test_a_domain_of_nothing_is_one_line(cli: Cli) -> None:
    result = cli("dataset=domain", "dataset.of=novels", "dataset.keywords=[love]")
    assert result.code == 2
    assert "dataset.of=novels: not one of domain, faithful, files," in result.err
