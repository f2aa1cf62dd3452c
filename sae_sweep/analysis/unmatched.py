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
    """Sets of features whose removal can be compared: orphans, and random shared ones like them.

    `orphans`: all of them. `shared`: all others that are live. `shared, as many`: as many random ones.
    `shared, as dense`: random ones in a random order until their densities add up to those of the orphans.
    """
    ours, others = orphan & live, live & ~orphan
    generator = torch.Generator().manual_seed(seed)
    order = others.nonzero()[:, 0][torch.randperm(int(others.sum()), generator=generator)]
    total = densities[ours].double().sum()
    dense = int((densities[order].double().cumsum(0) <= total).sum())
    empty = torch.zeros_like(orphan)
    return {
        "orphans": ours,
        "shared": others,
        "shared, as many": empty.index_fill(0, order[: int(ours.sum())], True),
        "shared, as dense": empty.index_fill(0, order[:dense], True),
    }
