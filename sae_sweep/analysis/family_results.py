"""All that is found out about the features that the SAEs of one hook share."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis.dictionaries import usable_rows
from sae_sweep.analysis.families import Families, find_families
from sae_sweep.analysis.family_keys import KeyRow, Kind, key_table, kinds
from sae_sweep.analysis.pairs import ComparisonEntry
from sae_sweep.analysis.stability import Overlap, Stability, overlap, seed_groups, seed_stability
from sae_sweep.config import MatchingConfig


@dataclass(frozen=True)
class Subspace:
    """The spans of the features of two seeds that no other seed holds, against each other."""

    a: str
    b: str
    n_a: int
    """Such features of a."""
    n_b: int
    found: Overlap


@dataclass(frozen=True)
class FamilyResults:
    """Families of the SAEs of one hook, what they depend on, and what comes back with every seed."""

    families: Families
    kinds: tuple[Kind, ...]
    """Which families are universal, common to all values of a key, or of one value only."""
    rows: tuple[KeyRow, ...]
    """Those kinds in numbers; a row each."""
    stability: tuple[Stability, ...]
    """One per trained SAE that has others which differ from it in the seed alone."""
    subspaces: tuple[Subspace, ...]
    """One per pair of those."""


def family_results(
    entries: Sequence[ComparisonEntry],
    config: MatchingConfig,
    *,
    residuals: Mapping[str, Float[Tensor, "tokens d_in"]] | None = None,
    device: torch.device | None = None,
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FamilyResults:
    """Find families, their kinds with intervals and nulls, stability over seeds, and subspaces.

    Args:
        entries: SAEs that read the same hook; undertrained ones are left out.
        config: thresholds.
        residuals: SAE inputs at random tokens by SAE, to compare subspaces with.
        device: where products are computed.
        between: called between steps, to obey a stop.
        progress: called with the number of compared pairs and of all pairs; may raise to stop.

    Raises:
        SaeSweepError: for fewer than two trained SAEs, or dictionaries that cannot be compared.
    """
    families = find_families(
        entries, config.threshold, undertrained=config.undertrained, device=device, progress=progress
    )
    used = [entry for entry in entries if entry.name in set(families.runs)]
    stability, subspaces = [], []
    for group in seed_groups(used):
        found = seed_stability(group, config.threshold, device=device, between=between)
        stability += found
        unstable = [_unstable(entry, one) for entry, one in zip(group, found, strict=True)]
        for i, j in itertools.combinations(range(len(group)), 2):
            between()
            names = group[i].name, group[j].name
            inputs = (residuals or {}).get(names[0])
            apart = overlap(unstable[i], unstable[j], residuals=inputs)
            subspaces.append(Subspace(*names, len(unstable[i]), len(unstable[j]), apart))
    return FamilyResults(
        families,
        tuple(kinds(families.presence, families.keys)),
        tuple(key_table(families, between=between)),
        tuple(stability),
        tuple(subspaces),
    )


def _unstable(entry: ComparisonEntry, stability: Stability) -> Float[Tensor, "n d_in"]:
    return usable_rows([entry.decoder[stability.unstable.to(entry.decoder.device)]]).unit
