"""SFR and FFR (FaithfulSAE, arXiv 2506.17673): features that two seeds share, and those that fire on noise.

SFR: share of the pairs of the best assignment of two decoders whose cosine is above 0.7; see `follow_seeds`.
FFR: share of features that are active, above 1, at more than a tenth of random tokens; see `fake`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.assignment import Assignment, assign
from sae_sweep.analysis.bootstrap import Estimate, Sample
from sae_sweep.analysis.dictionaries import usable_rows
from sae_sweep.analysis.features import Residuals, Subject
from sae_sweep.analysis.losses import BATCH_TOKENS
from sae_sweep.config import SaeSweepError

SHARED_ABOVE = 0.7
"""Decoder cosine above which a pair of features counts for SFR."""
ACTIVE_ABOVE = 1.0
"""Activation above which a feature counts as active for FFR."""
FREQUENT_ABOVE = 0.1
"""Share of random tokens above which an active feature is fake."""
NOISE_TOKENS = 1_000_000
"""Random tokens of FFR, the BOS of each sequence included."""


class FollowedSeeds(NamedTuple):
    """SAEs that differ in their seeds, feature by feature: each of the first's with its partners."""

    rows: Int[Tensor, "saes d_sae"]
    """The row of each SAE that the best assignment gives to each feature of the first."""
    shared: Bool[Tensor, "pairs d_sae"]
    """Whether the pair that holds the earlier SAE's row is shared, for every two SAEs in the order of
    `itertools.combinations`. The mean over features is the SFR of the two."""


def follow_seeds(
    decoders: Sequence[Float[Tensor, "_ d_in"]],
    threshold: float = SHARED_ABOVE,
    between: Callable[[], None] = lambda: None,
) -> FollowedSeeds:
    """Find which pairs of every two decoders are shared, in the first's order of features; SFR is the mean.

    A feature that all seeds find is shared in each of their pairs. In one order these are drawn together, so
    that intervals do not count it anew in each pair.

    Args:
        decoders: of equal sizes, without rows that cannot be compared.
        threshold: cosine above which a pair is shared.
        between: called between assignments, to obey a stop.

    Raises:
        SaeSweepError: for decoders that cannot be compared.
    """
    rows, shared = [torch.arange(len(decoders[0]))], []
    for one, other in itertools.combinations(range(len(decoders)), 2):
        between()
        found = _assigned(decoders[one], decoders[other])
        if one == 0:
            rows.append(found.index_a)
        shared.append((found.cosines_a > threshold)[rows[one]])
    size = len(decoders[0])
    return FollowedSeeds(torch.stack(rows), torch.stack(shared) if shared else torch.empty(0, size).bool())


def _assigned(one: Float[Tensor, "_ d_in"], other: Float[Tensor, "_ d_in"]) -> Assignment:
    units = [usable_rows([rows]).unit for rows in (one, other)]
    if not len(one) == len(other) == len(units[0]) == len(units[1]):
        raise SaeSweepError(
            f"SFR: decoders of {len(one):,} and {len(other):,} rows, of which {len(units[0]):,} and "
            f"{len(units[1]):,} can be compared; seeds need equally many, all of them"
        )
    return assign(*units)


def noise(tokens: int, seq_len: int, vocabulary: int, bos: int, seed: int = 0) -> Int[np.ndarray, "n seq"]:
    """Sequences of token ids drawn uniformly, special ones too, each opened by BOS.

    Args:
        tokens: how many, rounded up to whole sequences; BOS counts.
        seq_len: tokens per sequence.
        vocabulary: number of token ids.
        bos: id of BOS.
        seed: of the draws.
    """
    shape = (-(-tokens // seq_len), seq_len)
    ids = np.random.default_rng(seed).integers(0, vocabulary, shape, dtype=np.int32)
    ids[:, 0] = bos
    return ids


def activity(
    subjects: Mapping[str, Subject],
    lm: Residuals,
    sequences: Int[np.ndarray, "n seq"],
    levels: Sequence[float],
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Float[Tensor, "levels d_sae"]]:
    """Share of tokens at which each feature's activation is above each level, by SAE.

    As in the paper, the first position is not read, and counts in the tokens all the same.

    Args:
        subjects: SAEs, which share each pass of the language model.
        lm: the language model.
        sequences: token ids.
        levels: activations of at least 0, strictly above.
        progress: called before each batch with the tokens done and in all.
    """
    counts = {
        name: torch.zeros(len(levels), len(one.sae.W_dec), dtype=torch.int64)
        for name, one in subjects.items()
    }
    layers = sorted({one.layer for one in subjects.values()})
    size = max(1, BATCH_TOKENS // sequences.shape[1])
    with torch.no_grad():
        for start in range(0, len(sequences), size):
            progress(sequences[:start].size, sequences.size)
            tokens = torch.from_numpy(sequences[start : start + size]).long()
            residuals = lm.residuals(tokens, layers)
            for name, one in subjects.items():
                found = one.sae.encode(residuals[one.layer][:, 1:].flatten(0, 1).float())
                features = found.nonzero(as_tuple=True)[1]
                counts[name] += _counted(features, found[found != 0], levels, len(one.sae.W_dec)).cpu()
    return {name: one.double() / sequences.size for name, one in counts.items()}


def _counted(
    features: Int[Tensor, " nnz"], values: Float[Tensor, " nnz"], levels: Sequence[float], d_sae: int
) -> Int[Tensor, "levels d_sae"]:
    """How often each feature is above each level; most latents are 0, and are not looked at."""
    return torch.stack([torch.bincount(features[values > level], minlength=d_sae) for level in levels])


def fake(shares: Float[Tensor, " d_sae"], frequent: float = FREQUENT_ABOVE) -> Bool[Tensor, " d_sae"]:
    """Which features are active on noise too often to stand for anything in text; their mean is FFR.

    Args:
        shares: of `activity`, at one level.
        frequent: share of tokens, strictly above.
    """
    return shares > frequent


@dataclass(frozen=True)
class TextResult:
    """SFR and FFR of the SAEs of one text that differ in their seeds alone."""

    setting: str
    """What these SAEs have in common with those of the other texts; empty if there is one setting only."""
    text: str
    sampled: bool
    """Whether the model sampled the text itself."""
    runs: tuple[str, ...]
    undertrained: bool
    """Whether one of them still resembles its own start too much for a conclusion."""
    pairs: int
    """Pairs of seeds, of which SFR is the mean."""
    sfr: Sample
    ffr: Sample
    sfr_over_seeds: Estimate
    """SFR with its interval over seeds; none with fewer than three."""


def pooled(marks: Bool[Tensor, "sets d_sae"]) -> Sample:
    """Mean share over sets of marks on the same features, which are drawn together; nothing for no sets."""
    return Sample.of(marks.double().mean(0)[:, None], 0) if len(marks) else Sample.nothing()
