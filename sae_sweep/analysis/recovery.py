"""What was found of known features: by the families of a sweep, against the dictionary that made the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.dictionaries import usable_rows
from sae_sweep.analysis.family_results import FamilyResults
from sae_sweep.analysis.neighbours import nearest
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.analysis.statistics import divide


@dataclass(frozen=True)
class Recovery:
    """How well one kind of families stands for true features of one kind."""

    kind: str
    """`universal`, or `only` for those of one dataset."""
    dataset: str
    """Empty for universal families."""
    families: int
    right: int
    """Families whose mean direction is nearest to a true feature of that kind, above the threshold."""
    features: int
    """True features of that kind that every SAE found which could: with a cosine above the threshold."""
    precision: float
    """`right` as a share of the families; NaN without families."""
    recall: float
    """Share of those features that a family of that kind stands for; NaN if there are none."""
    of_all: int
    """True features of that kind, found or not."""


def recovery(
    results: FamilyResults,
    entries: Sequence[ComparisonEntry],
    shared: Float[Tensor, "features d_in"],
    own: Mapping[str, Float[Tensor, "_ d_in"]],
) -> list[Recovery]:
    """Compare universal families with shared true features, and those of one dataset with its own.

    A dataset of fewer than two SAEs is left out, for one SAE alone has no families.

    Args:
        results: families of SAEs that differ in `dataset` and in other keys.
        entries: the SAEs.
        shared: directions that the data of all datasets has.
        own: directions that only one has, by the value of the key `dataset`.
    """
    found = results.families
    used = [next(entry for entry in entries if entry.name == name) for name in found.runs]
    centres = _centres(results, used)
    sets = {"": shared, **own}
    truth = torch.cat(list(sets.values()))
    names = [name for name, rows in sets.items() for _ in range(len(rows))]
    family_cosines, family_truth = torch.empty(0), torch.empty(0, dtype=torch.int64)
    if len(centres):
        best = nearest(usable_rows([truth]).unit, centres, 1)
        family_cosines, family_truth = best.cosines_b[:, 0], best.index_b[:, 0]
    rows = []
    for name in sets:
        kind = "only" if name else "universal"
        chosen = _families_of(results, kind, name)
        of_kind = torch.tensor([one == name for one in names])
        right = chosen & (family_cosines > found.threshold) & of_kind[family_truth]
        able = [entry for entry in used if not name or str(entry.keys.get("dataset")) == name]
        if len(able) < 2:
            continue  # one SAE has no family of its own
        there = of_kind & _found_by_all(truth, able, found.threshold)
        stood_for = torch.zeros(len(truth), dtype=torch.bool).index_fill(0, family_truth[right], True)
        rows.append(
            Recovery(
                kind,
                name,
                families=int(chosen.sum()),
                right=int(right.sum()),
                features=int(there.sum()),
                precision=divide(int(right.sum()), int(chosen.sum())),
                recall=divide(int((there & stood_for).sum()), int(there.sum())),
                of_all=int(of_kind.sum()),
            )
        )
    return rows


def _families_of(results: FamilyResults, kind: str, value: str) -> Bool[Tensor, " families"]:
    key = "dataset" if value else ""
    for one in results.kinds:
        if (one.kind, one.key, one.value) == (kind, key, value):
            return one.families
    return torch.zeros(len(results.families.sizes), dtype=torch.bool)


def _centres(results: FamilyResults, used: Sequence[ComparisonEntry]) -> Float[Tensor, "families d_in"]:
    """Mean direction of each family's members."""
    found = results.families
    family = torch.arange(len(found.sizes)).repeat_interleave(found.sizes)
    sums = torch.zeros(len(found.sizes), used[0].decoder.shape[1])
    for run, entry in enumerate(used):
        here = found.member_runs == run
        features: Int[Tensor, " members"] = found.member_features[here]
        sums.index_add_(0, family[here], usable_rows([entry.decoder.cpu()[features]]).unit)
    return torch.nn.functional.normalize(sums, dim=1)


def _found_by_all(
    truth: Float[Tensor, "features d_in"], entries: Sequence[ComparisonEntry], threshold: float
) -> Bool[Tensor, " features"]:
    unit = usable_rows([truth]).unit
    there = torch.ones(len(unit), dtype=torch.bool)
    for entry in entries:
        rows = usable_rows([entry.decoder.cpu()], entry.densities).unit
        there &= nearest(unit, rows, 1).cosines_a[:, 0] > threshold
    return there
