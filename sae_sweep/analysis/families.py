"""Families of features over many SAEs: one feature per run at most, grown from the strongest match on."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.dictionaries import Kept, find_usable, usable_rows
from sae_sweep.analysis.neighbours import mutual, nearest
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.config import MatchingConfig, SaeSweepError

_EDGES_AT_ONCE = 1 << 20
"""Edges that are turned into Python's numbers at once."""
_FAMILIES_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Families:
    """Families, the largest first, then by mean cosine; members of each in the order of the runs."""

    runs: tuple[str, ...]
    """Names of the runs."""
    keys: tuple[Mapping[str, Any], ...]
    """Each run's values of the swept keys."""
    undertrained: tuple[str, ...]
    """Runs that were left out: they still match the dictionary they started from."""
    nodes: tuple[int, ...]
    """Features of each run that could be matched: live, finite and not zero."""
    left_out: tuple[str, ...]
    """What was left out of each run, in words; empty if nothing was."""
    threshold: float
    offsets: Int[Tensor, " families_and_end"]
    """Index of each family's first member, and at the end the number of all."""
    member_runs: Int[Tensor, " members"]
    """Numbers of the members' runs, in `runs`."""
    member_features: Int[Tensor, " members"]
    """Numbers of the members in their dictionaries."""
    mean_cosine: Float[Tensor, " families"]
    """Mean cosine of all pairs of members, whether or not they are mutual nearest neighbours."""
    candidates: tuple["Candidates", ...]
    """For each run, the nearest feature of any other run to each feature that could be matched."""

    @property
    def sizes(self) -> Int[Tensor, " families"]:
        """Members, and so runs, of each family."""
        return self.offsets.diff()

    @property
    def presence(self) -> Bool[Tensor, "families runs"]:
        """Whether each run has a member."""
        found = torch.zeros(len(self.sizes), len(self.runs), dtype=torch.bool)
        found[_family_of_members(self.offsets), self.member_runs] = True
        return found

    @property
    def orphans(self) -> tuple[int, ...]:
        """Features of each run that are in no family."""
        members = torch.bincount(self.member_runs, minlength=len(self.runs)).tolist()
        return tuple(n - count for n, count in zip(self.nodes, members, strict=True))


class Candidates(NamedTuple):
    """The nearest feature in any other run to each of a run's features, mutual or not."""

    features: Int[Tensor, " nodes"]
    """The run's features that could be matched."""
    cosines: Float[Tensor, " nodes"]
    """-1 where no other run has features."""
    runs: Int[Tensor, " nodes"]
    """Numbers of the runs that the nearest are in; -1 without one."""
    nearest: Int[Tensor, " nodes"]
    """Their numbers in those runs' dictionaries."""


def find_families(
    entries: Sequence[ComparisonEntry],
    threshold: float = MatchingConfig.threshold,
    *,
    undertrained: float = MatchingConfig.undertrained,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Families:
    """Follow features through the SAEs of one hook.

    Mutual nearest neighbours by the cosine of decoder rows, above `threshold`, are edges. In the order of
    falling cosine (of equal ones, by the numbers of the runs, then by the feature of the first) an edge
    joins the components of its ends, unless these have a run in common. Components of two or more are
    families. So a family holds at most one feature of each run, and no chain leads through one SAE.

    Args:
        entries: SAEs that read the same hook; where densities are known, dead features are left out.
        threshold: cosine, strictly above.
        undertrained: runs whose match to their own start is above this are left out.
        device: where products are computed.
        progress: called with the number of compared pairs and of all pairs; may raise to stop.

    Raises:
        SaeSweepError: for names that are not unique, dictionaries of different widths, or fewer than two
            SAEs that are trained and have features to match.
    """
    used = [entry for entry in entries if not entry.init_match > undertrained]
    _check(entries, used)
    kept = [find_usable([entry.decoder], entry.densities) for entry in used]
    starts = torch.tensor([0, *itertools.accumulate(len(one.ids) for one in kept)])
    candidates = [_no_candidates(one) for one in kept]
    edges = _edges(used, kept, starts, candidates, threshold, device, progress)
    roots = _grow(*edges, starts)
    offsets, nodes = _components(roots)
    runs = torch.searchsorted(starts, nodes, right=True) - 1
    features = torch.cat([one.ids for one in kept])[nodes]
    means = _mean_cosines(used, offsets, runs, features)
    order = _order(offsets, means)
    members = _members_of(order, offsets)
    return Families(
        runs=tuple(entry.name for entry in used),
        keys=tuple(entry.keys for entry in used),
        undertrained=tuple(entry.name for entry in entries if entry.init_match > undertrained),
        nodes=tuple(len(one.ids) for one in kept),
        left_out=tuple(one.left_out for one in kept),
        threshold=threshold,
        offsets=torch.cat([offsets.new_zeros(1), offsets.diff()[order].cumsum(0)]),
        member_runs=runs[members],
        member_features=features[members],
        mean_cosine=means[order],
        candidates=tuple(candidates),
    )


def _no_candidates(kept: Kept) -> Candidates:
    nothing = torch.full_like(kept.ids, -1)
    return Candidates(kept.ids, torch.full((len(kept.ids),), -1.0), nothing, nothing.clone())


def _update_candidates(
    ours: Candidates,
    theirs: Candidates,
    run: int,
    cosines: Float[Tensor, "nodes best"],
    rows: Int[Tensor, "nodes best"],
) -> None:
    """Take the nearest rows of another run where they are nearer than what is known."""
    best, index = cosines[:, 0].cpu(), rows[:, 0].cpu()
    nearer = best > ours.cosines
    ours.cosines[nearer], ours.runs[nearer] = best[nearer], run
    ours.nearest[nearer] = theirs.features[index[nearer]]


def _check(entries: Sequence[ComparisonEntry], used: Sequence[ComparisonEntry]) -> None:
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise SaeSweepError("families: two SAEs have the same name; each needs its own")
    if len(used) < 2:
        undertrained = len(entries) - len(used)
        reason = f" ({undertrained} left out, they still match their own start)" if undertrained else ""
        raise SaeSweepError(f"families: {len(used)} SAE to compare{reason}; at least 2 are needed")
    widths = {entry.name: entry.decoder.shape[-1] for entry in used}
    if len(set(widths.values())) > 1:
        text = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise SaeSweepError(f"families: only SAEs of one residual width can be compared, not d_in {text}")


def _edges(
    entries: Sequence[ComparisonEntry],
    kept: Sequence[Kept],
    starts: Int[Tensor, " runs_and_end"],
    candidates: Sequence[Candidates],
    threshold: float,
    device: torch.device | None,
    progress: Callable[[int, int], None],
) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
    """Nodes that each edge joins, the strongest edge first; fills `candidates`.

    Rows are scaled anew for each pair, which takes far less time than their product and no memory.
    """
    sources, targets, cosines = [], [], [torch.empty(0)]
    total, done = len(entries) * (len(entries) - 1) // 2, 0
    for i, first in enumerate(entries):
        ours = _unit(first, kept[i], device)
        for j in range(i + 1, len(entries)):
            theirs = _unit(entries[j], kept[j], device)
            if len(ours) and len(theirs):
                best = nearest(ours, theirs)
                _update_candidates(candidates[i], candidates[j], j, best.cosines_a, best.index_a)
                _update_candidates(candidates[j], candidates[i], i, best.cosines_b, best.index_b)
                found = mutual(best)
                above = (found.cosines > threshold).nonzero()[:, 0]
                sources.append((found.a[above].cpu() + starts[i]).int())
                targets.append((found.b[above].cpu() + starts[j]).int())
                cosines.append(found.cosines[above].cpu())
            done += 1
            progress(done, total)
    order = torch.cat(cosines).argsort(descending=True, stable=True)
    if not len(order):
        return order, order
    return torch.cat(sources)[order], torch.cat(targets)[order]


def _unit(entry: ComparisonEntry, kept: Kept, device: torch.device | None) -> Float[Tensor, "kept d_in"]:
    return usable_rows([entry.decoder[kept.ids.to(entry.decoder.device)].to(device)]).unit


def _grow(
    sources: Int[Tensor, " edges"], targets: Int[Tensor, " edges"], starts: Int[Tensor, " runs_and_end"]
) -> Int[Tensor, " nodes"]:
    """A node of each node's component, the same for all of its nodes (union-find)."""
    counts = starts.diff().tolist()
    parents = list(range(sum(counts)))
    runs = [1 << run for run, count in enumerate(counts) for _ in range(count)]  # a bit per run

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    for some in zip(sources.split(_EDGES_AT_ONCE), targets.split(_EDGES_AT_ONCE), strict=True):
        for source, target in zip(*(ends.tolist() for ends in some), strict=True):
            a, b = root(source), root(target)
            if not runs[a] & runs[b]:  # a component shares its runs with itself
                parents[b] = a
                runs[a] |= runs[b]
    return torch.tensor([root(node) for node in range(len(parents))], dtype=torch.int64)


def _components(
    roots: Int[Tensor, " nodes"],
) -> tuple[Int[Tensor, " families_and_end"], Int[Tensor, " members"]]:
    """Components of two or more nodes: where each begins, and their nodes in ascending order."""
    sizes = torch.bincount(roots, minlength=len(roots))
    nodes = (sizes[roots] > 1).nonzero()[:, 0]
    order = nodes[roots[nodes].argsort(stable=True)]
    sizes = sizes[sizes > 1]
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), order


def _mean_cosines(
    entries: Sequence[ComparisonEntry],
    offsets: Int[Tensor, " families_and_end"],
    runs: Int[Tensor, " members"],
    features: Int[Tensor, " members"],
) -> Float[Tensor, " families"]:
    """Mean cosine of all pairs of members, from the length of the sum of their rows."""
    n, width = len(offsets) - 1, entries[0].decoder.shape[1]
    family, means = _family_of_members(offsets), torch.empty(n)
    for start in range(0, n, _FAMILIES_AT_ONCE):
        count = min(_FAMILIES_AT_ONCE, n - start)
        sums = torch.zeros(count, width)
        here = (family >= start) & (family < start + count)
        for run, entry in enumerate(entries):
            chosen = here & (runs == run)
            rows = entry.decoder[features[chosen].to(entry.decoder.device)].cpu()
            sums.index_add_(0, family[chosen] - start, usable_rows([rows]).unit)
        sizes = offsets.diff()[start : start + count]
        means[start : start + count] = (sums.square().sum(1) - sizes) / (sizes * (sizes - 1))
    return means.clamp(-1, 1)


def _family_of_members(offsets: Int[Tensor, " families_and_end"]) -> Int[Tensor, " members"]:
    return torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())


def _order(
    offsets: Int[Tensor, " families_and_end"], means: Float[Tensor, " families"]
) -> Int[Tensor, " families"]:
    """Families by falling size, then falling mean cosine."""
    by_mean = means.argsort(descending=True, stable=True)
    return by_mean[offsets.diff()[by_mean].argsort(descending=True, stable=True)]


def _members_of(
    order: Int[Tensor, " families"], offsets: Int[Tensor, " families_and_end"]
) -> Int[Tensor, " members"]:
    """Places of the members of the families in another order."""
    sizes = offsets.diff()[order]
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return offsets[order].repeat_interleave(sizes) + within
