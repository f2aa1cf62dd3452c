"""What tells features that no other SAE has from those that are shared."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep.analysis.bootstrap import Estimate, estimate, estimate_difference
from sae_sweep.analysis.matching import unit_rows


@dataclass(frozen=True)
class Contrast:
    """A property of the features of an SAE that others share, and of those that none has."""

    property: str
    orphans: Estimate
    """Mean over features that no other SAE has."""
    shared: Estimate
    difference: Estimate
    """`orphans` minus `shared`, with its interval over features."""


def contrasts(
    properties: Mapping[str, Float[Tensor, " n"]], orphan: Bool[Tensor, " n"], live: Bool[Tensor, " n"]
) -> list[Contrast]:
    """Compare the means of properties over orphan and over shared features.

    Args:
        properties: a value per feature, by name; NaN where there is none.
        orphan: features that no other SAE has.
        live: features that count; the others are dead or cannot be compared.
    """
    found = []
    for name, values in properties.items():
        known = live & ~values.isnan()
        ours, others = values[known & orphan].float(), values[known & ~orphan].float()
        found.append(
            Contrast(name, estimate(ours), estimate(others, seed=1), estimate_difference(ours, others))
        )
    return found


def drift(
    decoder: Float[Tensor, "d_sae d_in"], initial: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " d_sae"]:
    """How far each feature turned away from where it started: 1 minus the cosine of the two directions."""
    return 1 - (unit_rows(decoder.float()) * unit_rows(initial.float().to(decoder.device))).sum(1)


def balanced(
    orphan: Bool[Tensor, " n"], live: Bool[Tensor, " n"], densities: Float[Tensor, " n"], seed: int = 0
) -> dict[str, Bool[Tensor, " n"]]:
    """Sets of features whose removal can be compared; without those that would be empty.

    `orphans` and `shared`: all that are live. `orphans, equally dense` and `shared, equally dense`: random
    ones of either, taken as long as their densities add up to no more than those of the sparser set.
    """
    sets = {"orphans": orphan & live, "shared": live & ~orphan}
    least = min(densities[one].double().sum().item() for one in sets.values())
    generator = torch.Generator().manual_seed(seed)
    found = dict(sets)
    for name, one in sets.items():
        order = one.nonzero()[:, 0][torch.randperm(int(one.sum()), generator=generator)]
        chosen, left = [], least * (1 + 1e-9)
        for feature, density in zip(order.tolist(), densities[order].tolist(), strict=True):
            if density <= left:
                chosen.append(feature)
                left -= density
        places = torch.tensor(chosen, dtype=torch.int64)
        found[f"{name}, equally dense"] = torch.zeros_like(orphan).index_fill(0, places, True)
    return {name: one for name, one in found.items() if one.any()}
