"""Names of runs are plain folder names, whatever a config contains."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.config import (
    ActivationsConfig,
    EmbeddedDataset,
    FilesDataset,
    HubDataset,
    InitConfig,
    JumpReLUConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RunConfig,
    TopKConfig,
    plain_name,
)
from sae_sweep.config.names import LONGEST_NAME, without_suffix
from sae_sweep.config.plain import compact
from sae_sweep.plan.naming import distinct_names, run_name

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


def test_a_name_that_is_too_long_keeps_whole_parts_and_ends_in_a_digest_of_all_of_it() -> None:
    def named(revision: str, lr: float) -> str:
        hub = HubDataset(name="owt", path="p", revision=revision, files="*/*.parquet")
        return run_name(config(dataset=hub, optimizer=OptimizerConfig(lr=lr), tokens=10**7), USUAL)

    short, long = named("main", 0.5), named("r" * 80, 0.5)
    base = "gpt2-small_L8_owt_topk_x16_k16_s49"
    kept = "dataset.revision-main_files--.parquet_text_key-text_held_out_every-50"
    assert re.fullmatch(rf"{base}_{kept}_[0-9a-f]{{12}}", short)
    assert re.fullmatch(rf"{base}_[0-9a-f]{{12}}", long)
    assert len({long, named("r" * 80, 0.6), named("r" * 81, 0.5)}) == 3
    wide = run_name(config(dataset=EmbeddedDataset(name="ü" * 60)), USUAL)
    assert len(wide.encode()) <= LONGEST_NAME
    assert re.fullmatch(r"gpt2-small_L8_ü+_[0-9a-f]{12}", wide)


@pytest.mark.parametrize(
    ("parts", "extras"),
    [
        ({"data_seed": 1}, "data_seed-1"),  # and no word of shuffle_seed, which follows it
        ({"shuffle_seed": 1}, "shuffle_seed-1"),
        ({"packing": PackingConfig(max_document_tokens=1024)}, "max_document_tokens-1024"),
        ({"model": ModelConfig(dtype="float32")}, "model.dtype-float32"),
        ({"activations": ActivationsConfig(dtype="float32")}, "activations.dtype-float32"),
        ({"optimizer": OptimizerConfig(lr=0.00012345678)}, "lr-0.00012345678"),
        ({"optimizer": OptimizerConfig(lr=1e-8)}, "lr-1e-08"),
        ({"tokens": 1_500_000, "batch": 65536}, "batch-65536_tokens-1.5e6"),
        ({"numerics": "study", "batch": 100}, "study_batch-100"),
    ],
)
def test_a_name_says_what_differs_and_each_key_so_that_no_other_is_meant(
    parts: dict[str, object], extras: str
) -> None:
    assert run_name(config(**parts), USUAL) == f"gpt2-small_L8_stdlib_docs_topk_x16_k16_s49_{extras}"


def test_a_name_that_another_run_has_ends_in_the_id_unless_its_sweep_gave_it() -> None:
    assert distinct_names({"1": "a", "2": "b"}, {}) == {"1": "a", "2": "b"}
    assert distinct_names({"1": "a", "2": "a", "3": "A"}, {}) == {"1": "a_1", "2": "a_2", "3": "A_3"}
    assert distinct_names({"1": "a", "2": "a"}, {"1": "a"}) == {"1": "a", "2": "a_2"}
    assert distinct_names({"1": "new"}, {"1": "old"}) == {"1": "old"}
    long = distinct_names(dict.fromkeys(("1" * 12, "2" * 12), "x" * LONGEST_NAME), {})
    assert {len(name) for name in long.values()} == {LONGEST_NAME}


def test_warm_ups_of_two_kinds_are_told_apart() -> None:
    jumprelu = RunConfig(architecture=JumpReLUConfig(), dataset=EmbeddedDataset())
    one = replace(jumprelu, optimizer=OptimizerConfig(warmup_fraction=0.3))
    other = replace(jumprelu, architecture=JumpReLUConfig(warmup_fraction=0.3))
    assert run_name(one, jumprelu).endswith("_s49_optimizer.warmup_fraction-0.3")
    assert run_name(other, jumprelu).endswith("_s49_architecture.warmup_fraction-0.3")


def test_what_the_experiment_fixes_is_not_in_the_name() -> None:
    fixed = config(optimizer=OptimizerConfig(lr=3e-3), init=InitConfig(shared=False), tokens=500_000)
    assert run_name(fixed, fixed) == "gpt2-small_L8_stdlib_docs_topk_x16_k16_s49"
    assert run_name(replace(fixed, tokens=100_000_000), fixed).endswith("_s49_tokens-1e8")


@given(st.floats(1e-30, 1e30), st.floats(1e-30, 1e30), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_two_numbers_never_have_one_text(x: float, y: float, i: int, j: int) -> None:
    for one, other in ((x, y), (i, j), (x, math.nextafter(x, 1e31)), (i, i + 1)):
        assert type(one)(float(compact(one)) if "e" in compact(one) else compact(one)) == one
        assert (compact(one) == compact(other)) == (one == other)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("EleutherAI/pythia-1.4b-v0", "pythia-1.4b-v0"),
        ("/models/Qwen2.5-0.5B/", "Qwen2.5-0.5B"),
        ("/models/Llama-3.2-1B.Q4_K_M.gguf", "Llama-3.2-1B.Q4_K_M"),
        ("a.GGUF", "a"),
        ("gpt2", "gpt2-small"),
        (".gguf", "gguf"),
    ],
)
def test_only_what_says_how_a_model_is_stored_is_cut_from_its_label(path: str, label: str) -> None:
    assert ModelConfig(path=path).label == label


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.jsonl.gz", "a"),
        ("a.b.txt", "a.b"),
        ("v1.5", "v1.5"),
        ("x.jsonl.zst.zst", "x"),
        ("txt", "txt"),
        ("", ""),
    ],
)
def test_suffixes(name: str, kept: str) -> None:
    assert without_suffix(name) == kept
