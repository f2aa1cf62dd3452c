"""Groups that are too large for the available memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.activations import LMSizes
from sae_sweep.config import ActivationsConfig, EvaluationConfig, PackingConfig, SaeSweepError
from sae_sweep.saes import Learner
from sae_sweep.store import machine
from sae_sweep.training import GroupTooLargeError, free_bytes, needs, refuse_too_large, split
from tests.training.fakes import BATCH, D_IN, FakeStream, make_config, make_member
from tests.training.helpers import train

ADAM_AND_GRADIENT = 4
LM = LMSizes(d_model=D_IN, d_mlp=4 * D_IN, heads=2, vocabulary=50, itemsize=4, attention="sdpa")


def test_a_member_holds_its_parameters_four_times() -> None:
    config = make_config()
    learner = Learner(*_new(config), config, "cpu")
    learner.step(torch.randn(BATCH, D_IN))
    held = [p for p in learner.sae.parameters() if p.requires_grad]
    real = ADAM_AND_GRADIENT * 4 * sum(p.numel() for p in held)
    assert real <= needs.member_bytes(config, D_IN) <= 1.1 * real


def _new(config: Any) -> tuple[Any]:
    from sae_sweep.saes import build_sae

    sae = build_sae(config.architecture, D_IN, config.dictionary * D_IN, seed=1, numerics=config.numerics)
    return (sae,)


@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=9),
    st.integers(0, 10**9),
    st.none() | st.integers(1, 4),
)
def test_parts_keep_the_order_and_stay_within_their_limits(
    sizes: list[int], room: int, max_group: int | None
) -> None:
    configs = [make_config(dictionary=size) for size in sizes]
    parts = split(configs, LM, [room], max_group)
    assert [position for part in parts for position in part] == list(range(len(sizes)))
    for part in parts:
        inside = [configs[position] for position in part]
        [needed] = needs.needs(inside, LM, on_cpu=True)
        assert len(part) == 1 or needed.bytes <= room
        assert max_group is None or len(part) <= max_group


LONG = {"tokens": 10**8}
"""A budget above every buffer; of a smaller one, no more is buffered."""


def _held_and_peaks(**keys: Any) -> dict[str, int]:
    [needed] = needs.needs([make_config(**keys)], LM, on_cpu=True)
    return {**needed.held, **needed.phases}


@pytest.mark.parametrize(
    ("keys", "larger", "term"),
    [
        ({}, {"dictionary": 64}, "the SAE and its optimiser"),
        (LONG, {**LONG, "activations": ActivationsConfig(buffer_tokens=10**6)}, "the buffer of activations"),
        ({}, LONG, "the buffer of activations"),
        ({}, {"evaluation": EvaluationConfig(tokens=10**6)}, "held-out residuals"),
        ({}, {"batch": 128}, "a training step"),
        ({}, {"activations": ActivationsConfig(lm_batch=1024)}, "a pass of the language model"),
        ({}, {"dictionary": 64}, "the evaluation"),
        ({}, {"packing": PackingConfig(seq_len=8192)}, "the evaluation"),
        ({}, {"dictionary": 64}, "a checkpoint"),
    ],
)
def test_each_term_grows_with_its_key(keys: dict[str, Any], larger: dict[str, Any], term: str) -> None:
    assert _held_and_peaks(**larger)[term] > 2 * _held_and_peaks(**keys)[term]


def test_eager_attention_keeps_the_scores_of_all_pairs() -> None:
    eager = LM._replace(attention="eager")
    [fast], [slow] = (needs.needs([make_config()], lm, on_cpu=True) for lm in (LM, eager))
    name = "a pass of the language model"
    assert slow.phases[name] > 2 * fast.phases[name]


def test_a_gpu_reads_the_cache_through_pinned_memory_of_the_machine() -> None:
    """Two layers need twice the pinned memory, and so two groups where the machine has too little of it."""
    cached = ActivationsConfig(source="cache", buffer_tokens=10**6)
    configs = [make_config(activations=cached, layer=layer, **LONG) for layer in (1, 2)]
    one, both = (needs.needs(some, LM, on_cpu=False)[1].bytes for some in (configs[:1], configs))
    assert one > 2 * 10**6 * D_IN * 4
    assert both > 1.8 * one
    assert split(configs, LM, [10**12, 10**12]) == [[0, 1]]
    assert split(configs, LM, [10**12, both]) == [[0], [1]]
    with pytest.raises(
        SaeSweepError, match=r"pinned memory for the cache .*: lower activations.buffer_tokens"
    ):
        refuse_too_large(configs[0], LM, [10**12, one // 2])


def test_an_evaluation_that_would_not_fit_splits_the_group_or_refuses_the_run() -> None:
    """Training on short batches needs little; the evaluation needs the logits of a large vocabulary."""
    lm = LM._replace(vocabulary=250_000)
    configs = [make_config(dictionary=64), make_config(dictionary=64)]
    [alone] = needs.needs(configs[:1], lm, on_cpu=True)
    evaluation = alone.phases["the evaluation"]
    training = alone.bytes - evaluation + alone.phases["a training step"]
    assert evaluation > 50 * training
    assert split(configs, lm, [2 * alone.bytes]) == [[0, 1]]
    assert split(configs, lm, [round(alone.bytes / 0.9)]) == [[0], [1]]
    refuse_too_large(configs[0], lm, [alone.bytes])
    with pytest.raises(
        SaeSweepError, match=r"needs at least .* are free; most of it is for the evaluation \("
    ):
        refuse_too_large(configs[0], lm, [2 * training])


def test_what_fits_stays_together() -> None:
    assert split([make_config()] * 5, LM, [10**12]) == [[0, 1, 2, 3, 4]]


def test_a_container_can_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [free] = free_bytes(torch.device("cpu"))
    own = tmp_path / "jobs" / "mine"
    own.mkdir(parents=True)
    (tmp_path / "of").write_text("0::/jobs/mine\n")
    (own / "memory.max").write_text("5000\n")
    (own / "memory.current").write_text("2000\n")
    (own / "memory.stat").write_text("anon 900\ninactive_file 1000\nactive_file 100\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "of")
    assert free_bytes(torch.device("cpu")) == [4000]
    assert free_bytes(torch.device("cpu"), sharers=4) == [1000]
    (own / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu"))[0] > free / 2


def _make_memory_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory run out from the sixth step on."""
    step = Learner.step

    def scarce(learner: Learner, x: torch.Tensor) -> Any:
        if learner.steps >= 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return step(learner, x)

    monkeypatch.setattr(Learner, "step", scarce)


def test_memory_that_runs_out_saves_the_group_which_goes_on_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {o.member.run.name: o for o in train(_two(tmp_path / "whole"), make_stream=FakeStream)}
    members = _two(tmp_path / "cut")
    with monkeypatch.context() as patch:
        _make_memory_scarce(patch)
        with pytest.raises(GroupTooLargeError, match="can't allocate memory"):
            train(members)
    for member in members:
        [outcome] = train([member])
        assert outcome.failed is None
        assert outcome.sae is not None
        theirs = whole[member.run.name].sae
        assert theirs is not None
        torch.testing.assert_close(outcome.sae.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def _two(root: Path) -> list[Any]:
    return [make_member(root, name, make_config(seed=seed)) for name, seed in (("a", 1), ("b", 2))]


def test_a_member_that_does_not_even_fit_alone_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_memory_scarce(monkeypatch)
    [outcome] = train([make_member(tmp_path, "a", make_config())], make_stream=FakeStream)
    assert outcome.failed is not None
    assert outcome.failed.startswith("memory ran out (DefaultCPUAllocator")


def test_memory_that_runs_out_in_the_lm_pass_asks_for_a_smaller_group(tmp_path: Path) -> None:
    with pytest.raises(GroupTooLargeError, match="CUDA out of memory"):
        train(_two(tmp_path), make_stream=_stream_without_memory)
    [outcome] = train(_two(tmp_path)[:1], make_stream=_stream_without_memory)
    assert outcome.failed == (
        "memory ran out (CUDA out of memory): lower activations.lm_batch; "
        "the same command goes on from 64 tokens"
    )
    assert outcome.tokens == 2 * BATCH  # Lightning fetches one batch ahead


def _stream_without_memory(layers: Sequence[int]) -> FakeStream:
    def before(layers: object, step: int) -> None:
        if step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return FakeStream(layers, before=before)


def test_an_sae_that_memory_cannot_hold_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("sae_sweep.training.trainee.starting_sae", refuse)
    [outcome] = train(_two(tmp_path)[:1], make_stream=FakeStream)
    assert outcome.failed == "memory ran out (DefaultCPUAllocator: can't allocate memory): lower dictionary"


def test_a_device_that_fails_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [make_member(tmp_path, "a", make_config())]
    step = Learner.step

    def fail(learner: Learner, x: torch.Tensor) -> Any:
        if learner.steps == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return step(learner, x)

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(members, checkpoint_every_min=1e-9)
    assert (members[0].run.folder.checkpoint / "state.safetensors").exists()
