"""Cost of a plan, compared with numbers computed by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import (
    ActivationsConfig,
    CommandConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.plan.cost import (
    SaeShape,
    Throughput,
    cache_bytes,
    group_cost,
    lm_flops_per_token,
    lm_tokens,
    plan_cost,
    sae_flops,
    sae_shape,
)

BLOCK = 7_077_888
"""Weights of a block of GPT-2 small, 12 x 768^2."""
PER_BLOCK = 2 * BLOCK + 4 * 128 * 768
SHAPE = SaeShape("topk", "modern", 768, 12_288)


def baseline(**keys: Any) -> RunConfig:
    return RunConfig(**{"architecture": TopKConfig(), "model": ModelConfig(dtype="float32"), **keys})


def plan_of(*configs: RunConfig, fuse: bool = True) -> Plan:
    request = Request(CommandConfig(fuse=fuse), [WantedRun(config, config) for config in configs])
    return make_plan(request, lambda config: {"corpus": config.dataset.name})


def test_lm_reads_the_masked_bos_of_every_sequence_too() -> None:
    assert lm_tokens(baseline(tokens=127_000_000)) == 128_000_000
    assert lm_tokens(baseline(tokens=1_000_000, packing=PackingConfig(seq_len=5))) == 1_250_000


@pytest.mark.parametrize("key", ["bos_every_sequence", "mask_special"])
def test_nothing_is_added_where_no_sequence_has_a_masked_bos(key: str) -> None:
    packing = dataclasses.replace(PackingConfig(), **{key: False})
    assert lm_tokens(baseline(tokens=127_000_000, packing=packing)) == 127_000_000


def test_flops_of_the_baseline() -> None:
    assert lm_flops_per_token(baseline()) == 8 * PER_BLOCK == 116_391_936
    assert lm_flops_per_token(baseline(layer=0)) == 0  # its residual is the embedding
    assert sae_flops(baseline()) == 12 * 768 * 12_288 * 100_000_000 == 11_324_620_800_000_000
    assert sae_shape(baseline()) == SHAPE


def test_a_group_pays_for_its_largest_budget_and_highest_layer() -> None:
    plan = plan_of(
        baseline(tokens=1_270_000), baseline(layer=3, tokens=2_540_000), baseline(seed=1, tokens=1_270_000)
    )
    (group,) = plan.groups()
    cost = group_cost(group)
    assert cost.layers == [3, 8]
    assert (cost.lm_tokens, cost.lm_tokens_solo) == (2_560_000, 5_120_000)
    assert cost.sae_tokens == 5_080_000
    assert cost.lm_flops == 2_560_000 * 8 * PER_BLOCK
    assert cost.sae_flops == 5_080_000 * 12 * 768 * 12_288
    assert cost.cache_bytes == 2_540_000 * 2 * 768 * 4 + 2_560_000 * 4


def test_budgets_below_the_buffer_share_a_pass_only_with_their_equals() -> None:
    plan = plan_of(
        *(
            baseline(tokens=tokens, layer=layer, seed=seed)
            for seed, tokens in enumerate((40_960, 81_920, 10**6))
            for layer in (3, 8)
        )
    )
    assert [len(group) for group in plan.groups()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("lm", "activations", "width"),
    [("bfloat16", "auto", 2), ("float32", "auto", 4), ("float32", "float16", 2), ("auto", "float32", 4)],
)
def test_the_cache_is_in_the_dtype_of_the_activations(lm: str, activations: str, width: int) -> None:
    config = baseline(
        tokens=127_000, model=ModelConfig(dtype=lm), activations=ActivationsConfig(dtype=activations)
    )
    assert cache_bytes(plan_of(config).runs) == 127_000 * 768 * width + 128_000 * 4


def test_hours_add_up_over_shapes_and_passes() -> None:
    big, small = baseline(tokens=127_000), baseline(dictionary=4, tokens=127_000)
    rates = {SHAPE: 2.0, SaeShape("topk", "modern", 768, 3072): 1.0}
    cost = plan_cost(plan_of(big, small), Throughput("measured", rates, {768: 4.0}))
    sae_seconds = 12 * 768 * 127_000 * (12_288 / 2e12 + 3072 / 1e12)
    lm_seconds = 128_000 * 8 * PER_BLOCK / 4e12
    assert cost.hours == pytest.approx((sae_seconds + lm_seconds) / 3600)
    assert cost.tflops_lm == pytest.approx(4.0)
    assert cost.tflops_sae == pytest.approx(12 * 768 * 127_000 * (12_288 + 3072) / sae_seconds / 1e12)


def test_one_by_one_every_run_is_a_pass_but_the_cache_is_shared() -> None:
    configs = [baseline(seed=seed, tokens=127_000) for seed in (1, 2)]
    cost = plan_cost(plan_of(*configs, fuse=False), Throughput("given", {SHAPE: 1.0}, {768: 1.0}))
    assert len(cost.groups) == 2
    assert cost.lm_tokens == cost.lm_tokens_solo == 256_000
    assert cost.cache_bytes == cost.groups[0].cache_bytes == 127_000 * 768 * 4 + 128_000 * 4


def test_a_model_of_unknown_width_has_tokens_but_no_flops() -> None:
    unknown = baseline(model=ModelConfig(path="somebody/some-lm"), tokens=127_000)
    cost = plan_cost(plan_of(unknown, baseline()), Throughput("given", {SHAPE: 1.0}, {768: 1.0}))
    first, second = cost.groups
    assert (first.lm_tokens, first.lm_flops, first.sae_flops, first.cache_bytes) == (
        128_000,
        None,
        None,
        None,
    )
    assert second.lm_flops is not None
    assert (cost.lm_flops, cost.sae_flops, cost.cache_bytes, cost.hours) == (None, None, None, None)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ({"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_inner": None}, 12 * 16**2),
        (
            {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32},
            2048,
        ),
        # q and o: 16 x 4 heads x 8; k and v: 16 x 2 heads x 8; three matrices of 16 x 40
        (
            {
                "model_type": "llama",
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 40,
            },
            2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 40,
        ),
        ({"model_type": "novel", "num_hidden_layers": 2, "hidden_size": 16}, None),
    ],
)
def test_blocks_of_a_local_model(tmp_path: Path, values: dict, weights: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = ModelConfig(path=str(tmp_path))
    assert model.shape == (2, 16)
    assert model.block_parameters == weights
    expected = 12 * 16**2 if weights is None else weights
    assert lm_flops_per_token(baseline(model=model, layer=1)) == 2 * expected + 4 * 128 * 16


def test_smollm2_has_shared_keys_and_a_gated_mlp() -> None:
    query_and_output, keys_and_values, mlp = 2 * 576 * 576, 2 * 576 * 192, 3 * 576 * 1536
    model = ModelConfig(path="HuggingFaceTB/SmolLM2-135M")
    assert model.block_parameters == query_and_output + keys_and_values + mlp
