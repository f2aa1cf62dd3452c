"""Helpers: groups on fakes, interruptions, and the expected weights of each member."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sae_sweep.config import BatchTopKConfig, JumpReLUConfig, ReLUConfig, RunConfig, TopKConfig
from sae_sweep.saes import Learner, build_sae, init_seed
from sae_sweep.signals import stop_signals
from sae_sweep.training import GroupSettings, Member, Outcome, train_group
from sae_sweep.training.data import Stream
from tests.training.fakes import D_IN, FakeStream, make_config, make_member, residuals

ARCHITECTURES = [
    TopKConfig(k=2),
    BatchTopKConfig(k=2),
    JumpReLUConfig(),
    JumpReLUConfig(initial_threshold=2.0),
    ReLUConfig(),
]

Before = Callable[[Sequence[int], int], None]


def train(
    members: Sequence[Member],
    before: Before | None = None,
    checkpoint_every_min: float = 1e9,
    log_every: int = 5,
    make_stream: Callable[[Sequence[int]], Stream] | None = None,
    on_finished: Callable[[Outcome], None] | None = None,
    histograms: int = 0,
    **stream: int,
) -> list[Outcome]:
    keys = {"before": before} if before else {}
    with stop_signals() as stop:
        return train_group(
            members,
            make_stream or (lambda layers: FakeStream(layers, **stream, **keys)),
            d_in=D_IN,
            settings=GroupSettings(log_every, checkpoint_every_min, histograms=histograms),
            stop=stop,
            on_finished=on_finished,
        )


def mixed_members(root: Path) -> list[Member]:
    """Members of all architectures, on two layers, with different budgets."""
    return [
        make_member(root, f"m{i}", make_config(architecture, steps=8 + 3 * i, layer=1 + i % 2, seed=i))
        for i, architecture in enumerate(ARCHITECTURES)
    ]


def bare_loop(config: RunConfig, run_id: str) -> dict[str, torch.Tensor]:
    """Expected weights: the same steps without a group."""
    seed = init_seed(config, run_id)
    sae = build_sae(config.architecture, D_IN, 2 * D_IN, seed=seed, numerics=config.numerics)
    learner = Learner(sae, config, "cpu")
    for step in range(config.steps):
        learner.step(residuals(config.layer, step))
    return sae.state_dict()


def bits(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.sae is not None
    return {name: value.clone() for name, value in outcome.sae.state_dict().items()}


def assert_equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class PowerCut(BaseException):
    """Ends a process without a chance to save."""


def raise_at(at: int, error: BaseException) -> Before:
    def before(layers: Sequence[int], step: int) -> None:
        del layers
        if step == at:
            raise error

    return before


def kill(signum: int, at: int) -> Before:
    def before(layers: Sequence[int], step: int) -> None:
        del layers
        if step == at:
            os.kill(os.getpid(), signum)

    return before
