"""Which families of features two datasets share, against how often what triggers them occurs in each.

A family of dataset A has members in A's SAEs of at least two seeds, so that it is no accident of one. It is
held by dataset B if any of B's SAEs has a member. Its frequency in a text is the mean share of tokens on
which its members in A's SAEs fire there: what A's SAEs respond to, whether or not B's SAEs learned it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_sweep.analysis.dataset_diff import wilson

RATIOS = (0.0, 1 / 30, 1 / 10, 1 / 3, 1.0, 3.0, np.inf)
"""Edges of the bins: frequency in the other text divided by frequency at home."""
Densities = Mapping[tuple[str, str], Float[np.ndarray, " d_sae"]]
"""Share of tokens on which each feature fires, by run and by the dataset that it reads."""


class Member(NamedTuple):
    """A feature of a family."""

    family: int
    run: str
    feature: int


class FamilyFrequency(NamedTuple):
    """A family of one dataset's SAEs, beside another dataset."""

    family: int
    home: str
    other: str
    members: int
    """Members in SAEs of the home dataset."""
    home_density: float
    """Share of tokens of the home dataset on which those members fire, averaged."""
    other_density: float
    held: bool
    """Whether an SAE of the other dataset has a member, too."""


class HeldShare(NamedTuple):
    """Share of a dataset's families that another holds, among those of similar relative frequency."""

    home: str
    other: str
    ratio_from: float
    ratio_to: float
    families: int
    held: float
    """NaN without families."""
    low: float
    """Wilson's 95 % interval, over families."""
    high: float


def family_frequencies(
    members: Iterable[Member],
    trained_on: Mapping[str, str],
    seeds: Mapping[str, int],
    densities: Densities,
) -> list[FamilyFrequency]:
    """Compare the families of each dataset with each other dataset.

    Args:
        members: features of families of one hook; those of runs without densities count as absent. A dataset
            that none of their runs was trained on is not compared: no SAE there could hold a family.
        trained_on: dataset of each run.
        seeds: seed of each run.
        densities: of each run on each dataset.
    """
    families: dict[int, list[Member]] = {}
    for one in members:
        if one.run in trained_on:
            families.setdefault(one.family, []).append(one)
    here = {trained_on[one.run] for some in families.values() for one in some}
    texts = [text for text in dict.fromkeys(text for _, text in densities) if text in here]
    found = []
    for family, some in families.items():
        for home, other in itertools.permutations(texts, 2):
            ours = [one for one in some if trained_on[one.run] == home]
            known = all((one.run, text) in densities for one in ours for text in (home, other))
            if len({seeds[one.run] for one in ours}) < 2 or not known:
                continue
            at_home, there = (_density(ours, text, densities) for text in (home, other))
            held = any(trained_on[one.run] == other for one in some)
            found.append(FamilyFrequency(family, home, other, len(ours), at_home, there, held))
    return found


def _density(members: Sequence[Member], text: str, densities: Densities) -> float:
    return float(np.mean([densities[one.run, text][one.feature] for one in members]))


def held_shares(found: Sequence[FamilyFrequency]) -> list[HeldShare]:
    """Share of families that are held, by the ratio of their frequencies; silent families are left out."""
    shares = []
    for home, other in dict.fromkeys((one.home, one.other) for one in found):
        some = [one for one in found if (one.home, one.other) == (home, other) and one.home_density > 0]
        ratios = np.array([one.other_density / one.home_density for one in some])
        held = np.array([one.held for one in some], dtype=np.int64)
        for start, end in itertools.pairwise(RATIOS):
            inside = (ratios >= start) & (ratios < end)
            count = int(inside.sum())
            low, high, share = np.nan, np.nan, np.nan
            if count:
                ends = wilson(held[inside].sum(keepdims=True), count)
                low, high, share = ends[0].item(), ends[1].item(), held[inside].mean().item()
            shares.append(HeldShare(home, other, start, end, count, share, low, high))
    return shares
