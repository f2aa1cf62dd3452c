"""All measures of how far two dictionaries match, each beside its null, with intervals over features."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.assignment import assign, shared, soft_match
from sae_sweep.analysis.bootstrap import Estimate, Sample
from sae_sweep.analysis.neighbours import mutual, nearest
from sae_sweep.config import MatchingConfig, SaeSweepError

MEASURES = {
    "ratio": "share of features whose best cosine is above the threshold",
    "mmcs": "mean best cosine",
    "mutual": "share of features that have a mutual nearest neighbour above the threshold",
    "assigned": "share of features whose partner in the best assignment is above the threshold (SFR)",
    "mcc": "mean cosine of the pairs of the best assignment (PW-MCC)",
    "shared": "share of features whose partner is above the threshold in decoder and encoder",
    "soft": "mean cosine under the transport plan (Sinkhorn)",
}
"""The measures by name. All are directional except `mcc`, which has a value per pair."""


class UnitRows(NamedTuple):
    """A dictionary's rows of length 1, as of `rows_of`."""

    unit: Float[Tensor, "n width"]
    """What is compared."""
    encoder: Float[Tensor, "n d_in"] | None = None
    """Encoder rows of the same features, which `shared` needs (`halves`)."""


class Values(NamedTuple):
    """A value per feature, whose mean is the measure."""

    a: Float[Tensor, " n_a"]
    """For each of a's features, how it is matched by b."""
    b: Float[Tensor, " n_b"]


@dataclass(frozen=True)
class Measure:
    """One measure of how far the features of SAEs are matched by others."""

    measure: str
    direction: str
    """`a_in_b`: over a's features; `b_in_a`: over b's; `both`: the mean of the two."""
    found: Estimate
    null: Estimate
    """The same with a null in the place of the SAE that is looked into; NaN without one."""
    difference: Estimate
    """`found` minus `null`, feature by feature."""


def feature_values(
    a: UnitRows,
    b: UnitRows,
    threshold: float = MatchingConfig.threshold,
    measures: Collection[str] = tuple(MEASURES),
    *,
    absolute: bool = False,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Values]:
    """Measure how each feature of two dictionaries is matched by the other one.

    Args:
        a: rows of the first SAE.
        b: rows of the second.
        threshold: cosine, strictly above.
        measures: names in `MEASURES`; `shared` is left out without encoders.
        absolute: whether the size of a cosine counts, and not its sign; `shared` and `soft` take the sign.
        between: called between blocks and measures, to obey a stop.

    Raises:
        SaeSweepError: for an unknown measure, or dictionaries that cannot be compared.
    """
    unknown = sorted(set(measures) - set(MEASURES))
    if unknown:
        raise SaeSweepError(
            f"matching: there is no measure {', '.join(unknown)}; known: {', '.join(MEASURES)}"
        )
    found: dict[str, Values] = {}
    if {"ratio", "mmcs", "mutual"} & set(measures):
        found |= _by_neighbours(a.unit, b.unit, threshold, absolute, between)
    between()
    if {"assigned", "mcc"} & set(measures):
        pairs = assign(a.unit, b.unit, absolute=absolute)
        found["assigned"] = Values(
            (pairs.cosines_a > threshold).float(), (pairs.cosines_b > threshold).float()
        )
        found["mcc"] = Values(pairs.cosines_a[pairs.index_a >= 0], pairs.cosines_b[pairs.index_b >= 0])
    between()
    if "shared" in measures and a.encoder is not None and b.encoder is not None:
        rule = shared((a.unit, a.encoder), (b.unit, b.encoder), threshold)
        found["shared"] = Values(rule.shared_a.float(), rule.shared_b.float())
    if "soft" in measures:
        plan = soft_match(a.unit, b.unit, between=between)
        found["soft"] = Values(plan.cosines_a, plan.cosines_b)
    return {name: found[name] for name in MEASURES if name in measures and name in found}


def _by_neighbours(
    a: Tensor, b: Tensor, threshold: float, absolute: bool, between: Callable[[], None]
) -> dict[str, Values]:
    found = nearest(a, b, absolute=absolute, between=between)
    top_a, top_b = found.cosines_a[:, 0].cpu(), found.cosines_b[:, 0].cpu()
    pairs, mutual_a, mutual_b = mutual(found), torch.zeros_like(top_a), torch.zeros_like(top_b)
    above = (pairs.cosines > threshold).cpu()
    mutual_a[pairs.a.cpu()[above]], mutual_b[pairs.b.cpu()[above]] = 1, 1
    return {
        "ratio": Values((top_a > threshold).float(), (top_b > threshold).float()),
        "mmcs": Values(top_a, top_b),
        "mutual": Values(mutual_a, mutual_b),
    }


def estimate_measures(
    found: Mapping[str, Sample], null: Mapping[str, Sample], direction: str
) -> list[Measure]:
    """Each measure with its intervals, beside its null where there is one."""
    nothing = Sample.nothing()
    return [
        Measure(
            name,
            direction,
            found[name].estimate(),
            null.get(name, nothing).estimate(),
            (found[name] - null[name] if name in null else nothing).estimate(),
        )
        for name in MEASURES
        if name in found
    ]
