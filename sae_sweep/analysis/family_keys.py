"""What the runs of a family have in common: universal families, those of one value of a key, and chance."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.bootstrap import RESAMPLES, bootstrap_means
from sae_sweep.analysis.families import Families
from sae_sweep.analysis.statistics import divide

SHUFFLES = 200
"""Shuffled tables of presence."""
UNIVERSAL = 0.9
"""Share of the runs in which a universal family has a member."""
_ROUNDS = 5
"""Trades of every run between two shuffled tables."""


@dataclass(frozen=True)
class KeyRow:
    """Families of one kind; a row of the table that says what features depend on."""

    key: str
    """The swept key; empty for universal families."""
    kind: str
    """`universal`, `common` (in at least half of the runs of every value of the key) or `only` (in at least
    half of the runs of one value, and in no run of another)."""
    value: str
    """The value, for `only`; empty for all of them together."""
    runs: int
    """Runs that have the key, or this value of it."""
    families: int
    """Families of this kind."""
    share: float
    """Those, as a share of all families with two or more members in runs that have the key."""
    low: float
    """Lower end of the 95 % interval of `share`, over families."""
    high: float
    seed_low: float
    """Lower end of its 95 % interval over seeds (jackknife); NaN with fewer than three, and for the seed."""
    seed_high: float
    null: float
    """Mean of `share` when presence is shuffled, with the sizes of families and of runs kept."""
    null_low: float
    """2.5th percentile of the shuffled tables."""
    null_high: float
    mean_size: float
    """Mean number of runs of these families; NaN without families."""
    mean_cosine: float


@dataclass(frozen=True)
class Kind:
    """Families of one kind."""

    key: str
    kind: str
    value: str
    runs: Bool[Tensor, " runs"]
    """Runs that have the key, or this value of it."""
    families: Bool[Tensor, " families"]
    counted: Bool[Tensor, " families"]
    """Families that could be: those with two or more members in runs that have the key."""


def kinds(presence: Bool[Tensor, "families runs"], keys: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """Say of which kinds each family is: universal, and common and `only` for each swept key.

    For a key, runs that lack it do not count, nor do families with fewer than two members in the others. So
    a value of a single run has no families of its own. A key with one value says nothing and is left out.
    """
    return list(_kinds(presence.float(), keys, torch.ones(len(keys))))


def _kinds(
    presence: Float[Tensor, "families runs"],
    keys: Sequence[Mapping[str, Any]],
    weights: Float[Tensor, " runs"],
) -> Iterator[Kind]:
    """The same, with each run counted `weights` times."""
    counted = presence.sum(1) >= 2
    universal = counted & (presence @ weights >= UNIVERSAL * weights.sum() - 1e-4)
    yield Kind("", "universal", "", weights > 0, universal, counted)
    for key in dict.fromkeys(key for own in keys for key in own):
        values = [str(own[key]) if key in own else None for own in keys]
        names = list(dict.fromkeys(value for value in values if value is not None))
        if len(names) < 2:
            continue
        chosen = torch.tensor([[value == name for name in names] for value in values]).float()
        counts = presence @ (chosen * weights[:, None])
        has = chosen.any(1)
        counted = presence[:, has].sum(1) >= 2
        half = (counts >= chosen.T @ weights / 2) & counted[:, None]
        only = half & (counts.sum(1, keepdim=True) == counts)
        yield Kind(key, "common", "", has, half.all(1), counted)
        yield Kind(key, "only", "", has, only.any(1), counted)
        for column, name in enumerate(names):
            yield Kind(key, "only", name, chosen[:, column] > 0, only[:, column], counted)


def key_table(
    found: Families,
    *,
    seed_key: str = "seed",
    shuffles: int = SHUFFLES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
) -> list[KeyRow]:
    """The table of kinds of families, each with its intervals and its null.

    Args:
        found: families of a sweep.
        seed_key: key whose values are drawn for the intervals over seeds.
        shuffles: shuffled tables of presence for the null, at least 1.
        resamples: draws of families, and of seeds.
        seed: of all of that.
        between: called between shuffles, to obey a stop.
    """
    presence, keys = found.presence, found.keys
    observed = kinds(presence, keys)
    base = torch.stack([kind.counted for kind in observed], 1)
    hits = torch.stack([kind.families for kind in observed], 1)
    low, high = _over_families(hits, base, seed, resamples)
    seed_low, seed_high = _over_seeds(presence, keys, seed_key, observed)
    null, null_low, null_high = _chance(presence, keys, shuffles, seed, between)
    sizes = found.sizes.double()
    return [
        KeyRow(
            key=kind.key,
            kind=kind.kind,
            value=kind.value,
            runs=int(kind.runs.sum()),
            families=int(hits[:, i].sum()),
            share=_share(kind),
            low=low[i],
            high=high[i],
            seed_low=seed_low[i],
            seed_high=seed_high[i],
            null=null[i],
            null_low=null_low[i],
            null_high=null_high[i],
            mean_size=sizes[hits[:, i]].mean().item(),
            mean_cosine=found.mean_cosine[hits[:, i]].double().mean().item(),
        )
        for i, kind in enumerate(observed)
    ]


def _over_families(
    hits: Bool[Tensor, "families kinds"], base: Bool[Tensor, "families kinds"], seed: int, resamples: int
) -> tuple[list[float], list[float]]:
    if not len(hits):
        return [math.nan] * hits.shape[1], [math.nan] * hits.shape[1]
    means = bootstrap_means(torch.cat([hits, base], 1).float(), seed=seed, resamples=resamples)
    return _ranges(means[:, : hits.shape[1]] / means[:, hits.shape[1] :])


def _over_seeds(
    presence: Bool[Tensor, "families runs"],
    keys: Sequence[Mapping[str, Any]],
    seed_key: str,
    observed: Sequence[Kind],
) -> tuple[list[float], list[float]]:
    """Jackknife intervals: 1.96 standard errors of the shares when each seed is left out in turn.

    A bootstrap would not do: a draw with a seed twice has fewer distinct SAEs, in which a family is more
    easily universal.
    """
    names = [str(own.get(seed_key)) for own in keys]
    seeds = sorted({name for name, own in zip(names, keys, strict=True) if seed_key in own})
    nothing = [math.nan] * len(observed)
    if len(seeds) < 3 or not all(seed_key in own for own in keys) or not len(presence):
        return nothing, nothing
    weights = [torch.tensor([name != left_out for name in names]).float() for left_out in seeds]
    shares = torch.stack([_shares(presence, keys, each, observed, seed_key) for each in weights]).double()
    spread = (shares - shares.mean(0)).square().mean(0) * (len(seeds) - 1)
    reach = 1.96 * spread.sqrt()
    values = torch.tensor([_share(kind) for kind in observed], dtype=torch.float64)
    return (values - reach).clamp(min=0).tolist(), (values + reach).clamp(max=1).tolist()


def _shares(
    presence: Bool[Tensor, "families runs"],
    keys: Sequence[Mapping[str, Any]],
    weights: Float[Tensor, " runs"],
    observed: Sequence[Kind],
    seed_key: str,
) -> Float[Tensor, " kinds"]:
    """Shares with runs counted `weights` times; NaN for the seed, and where a value has no run left."""
    drawn = presence & (weights > 0)
    found = []
    for kind, again in zip(observed, _kinds(drawn.float(), keys, weights), strict=True):
        missing = kind.key == seed_key or not _all_left(kind.key, keys, weights)
        found.append(math.nan if missing else _share(again))
    return torch.tensor(found)


def _share(kind: Kind) -> float:
    return divide(kind.families.sum().item(), kind.counted.sum().item())


def _all_left(key: str, keys: Sequence[Mapping[str, Any]], weights: Float[Tensor, " runs"]) -> bool:
    """Whether every value of a key has a run that counts."""
    pairs = [
        (str(own[key]), weight) for own, weight in zip(keys, weights.tolist(), strict=True) if key in own
    ]
    return {value for value, _ in pairs} == {value for value, weight in pairs if weight}


def _chance(
    presence: Bool[Tensor, "families runs"],
    keys: Sequence[Mapping[str, Any]],
    shuffles: int,
    seed: int,
    between: Callable[[], None],
) -> tuple[list[float], list[float], list[float]]:
    """Mean and 95 % range of the shares in shuffled tables of presence."""
    shares: list[Tensor] = []
    for shuffled in shuffled_presence(presence, seed):
        if len(shares) == shuffles:
            break
        between()
        shares.append(torch.tensor([_share(kind) for kind in kinds(shuffled, keys)]))
    table = torch.stack(shares)
    return (table.double().nanmean(0).tolist(), *_ranges(table))


def _ranges(shares: Float[Tensor, "draws kinds"]) -> tuple[list[float], list[float]]:
    """2.5th and 97.5th percentiles of each column, NaNs left out."""
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.nanquantile(shares.double(), levels, dim=0)
    return low.tolist(), high.tolist()


def shuffled_presence(
    presence: Bool[Tensor, "families runs"], seed: int = 0
) -> Iterator[Bool[Tensor, "families runs"]]:
    """Tables drawn at random among those with the same sizes of families and of runs, without end.

    Runs trade in random pairs the families that only one of the two has (curveball: Strona et al. 2014;
    all runs at once: Carstens et al. 2018); a few rounds lie between a table and the next.
    """
    rng = np.random.default_rng(seed)
    table = presence.T.numpy().copy()
    while True:
        for _ in range(_ROUNDS):
            order = rng.permutation(len(table))
            for first, second in zip(order[::2], order[1::2], strict=False):
                _trade(table[first], table[second], rng)
        yield torch.from_numpy(table.T.copy())


def _trade(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> None:
    """Deal out anew the families that only one of two runs has; each keeps its number of them."""
    tradable = np.flatnonzero(first ^ second)
    own = int(first[tradable].sum())
    dealt = rng.permutation(tradable)
    first[tradable], second[tradable] = False, True
    first[dealt[:own]], second[dealt[:own]] = True, False


def by_number_of_runs(found: Families) -> Int[Tensor, " runs_and_none"]:
    """Families in exactly n of the runs, for n = 0, 1, …; the features in no family are those of n = 1."""
    counts = torch.bincount(found.sizes, minlength=len(found.runs) + 1)
    counts[1] = sum(found.orphans)
    return counts


def accumulation(found: Families) -> Float[Tensor, " runs"]:
    """Distinct features, families or in no family, that n of the runs hold on average, for n = 1, 2, …

    The mean over all choices of n runs, exactly: a family of r among R runs is missed by n of them with
    probability C(R - r, n) / C(R, n). A flat end says that more runs would find nothing new.
    """
    counts, total = by_number_of_runs(found).tolist(), len(found.runs)
    return torch.tensor(
        [
            sum(
                count * (1 - math.comb(total - size, n) / math.comb(total, n))
                for size, count in enumerate(counts)
            )
            for n in range(1, total + 1)
        ],
        dtype=torch.float64,
    )
