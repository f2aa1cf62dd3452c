"""Runs of an invented sweep that have a known share of features in common."""

import dataclasses
import math
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_sweep.study.cells import Cell, table1_cells
from sae_sweep.study.published import RunFacts, published
from sae_sweep.study.runs import StudyRun

D_IN = 24


def pair_of(key: str) -> Cell:
    """The cell of Table 1 with this key."""
    (cell,) = (cell for cell in table1_cells() if cell.key == key)
    return cell


BASELINE = pair_of("seed_42_49/12288/owt").counted
"""The study's baseline, as a cell of Table 1 has it."""


def decoder_of(facts: RunFacts, *, share: float = 0.6, d_in: int = D_IN) -> Tensor:
    """Most rows belong to the size, some to each setting, so that every pair of runs shares some."""
    n = facts.dictionary * d_in
    settings = {
        "size": share,
        f"dataset {facts.dataset}": 0.4 * (1 - share),
        f"seed {facts.seed}": 0.2 * (1 - share),
        f"{facts.architecture} {facts.sparsity}": 0.2 * (1 - share),
        f"layer {facts.layer} {facts}": 0.2 * (1 - share),
    }
    counts = [round(weight * n) for weight in settings.values()]
    counts[-1] = n - sum(counts[:-1])
    return torch.cat([rows(count, name, d_in) for name, count in zip(settings, counts, strict=True)])


def rows(n: int, name: str, d_in: int = D_IN) -> Tensor:
    """The first n of an endless list of random rows that belong to a name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(n, d_in, generator=generator)


def study_run(facts: RunFacts, decoder: Tensor | None = None, **changes: Any) -> StudyRun:
    """A finished run for an SAE of the study."""
    rows_of = decoder_of(facts) if decoder is None else decoder
    jumprelu = facts.architecture == "jumprelu"
    run = StudyRun(
        name=str(facts),
        architecture=facts.architecture,
        dictionary=facts.dictionary,
        k=None if jumprelu else int(facts.sparsity),
        l0_coefficient=facts.sparsity if jumprelu else None,
        dataset=facts.dataset,
        layer=facts.layer,
        seed=facts.seed,
        init_shared=True,
        tokens=100_000,
        init_match=0.02,
        decoder=lambda: rows_of,
        densities=lambda: torch.ones(len(rows_of)).double(),
        explained_variance=0.7,
    )
    return dataclasses.replace(run, **changes)


def all_runs(saes: Iterable[RunFacts] | None = None) -> list[StudyRun]:
    """One run for every SAE of the study; those of layers 0 and 1 are undertrained."""
    return [
        study_run(facts, init_match=0.3 if facts.layer < 2 else 0.02)
        for facts in (published().saes if saes is None else saes)
    ]


def at(degrees: float) -> list[float]:
    """A unit vector in the plane."""
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
