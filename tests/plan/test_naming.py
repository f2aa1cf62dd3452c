"""Names of runs are plain folder names, whatever a config contains."""

import pytest

from sae_sweep.config import (
    EmbeddedDataset,
    FilesDataset,
    HubDataset,
    ModelConfig,
    RunConfig,
    TopKConfig,
    plain_name,
)
from sae_sweep.plan.naming import run_name

USUAL = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset())


def config(**parts: object) -> RunConfig:
    return RunConfig(**{"architecture": TopKConfig(), "dataset": EmbeddedDataset(), **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parts",
    [
        {"model": ModelConfig(path=path, revision="a/b\n")}
        for path in ("..", "/", "-rf.gguf", "/x/.hidden", "a\nb\x1b[2J", "\udcff/\udcfe", "中" * 40, "")
    ]
    + [
        {"dataset": FilesDataset(path="x", text_key="../\\\u202e\x00\udcff")},
        {"dataset": HubDataset(path="a/b", revision="../..", files="**/*.parquet\n")},
        {"model": ModelConfig(name="m" * 120), "dataset": EmbeddedDataset(name="ü" * 60)},
    ],
)
def test_a_run_has_a_plain_name(parts: dict[str, object]) -> None:
    problems: list[str] = []
    plain_name(problems, "run", run_name(config(**parts), USUAL))
    assert problems == []


def test_long_names_that_are_cut_stay_different() -> None:
    long = EmbeddedDataset(name="d" * 120)
    names = {run_name(config(dataset=long, seed=seed), USUAL) for seed in range(20)}
    assert len(names) == 20


def test_a_usual_name_is_as_it_was() -> None:
    assert run_name(USUAL, USUAL) == "gpt2-small_L8_stdlib_docs_topk_x16_k16_s49"
    cut = config(dataset=HubDataset(name="owt", path="p" * 80, revision="r" * 80, files="*.parquet"))
    assert run_name(cut, USUAL) == f"gpt2-small_L8_owt_topk_x16_k16_s49_revision-{'r' * 63}_09fe6d6ec989"
