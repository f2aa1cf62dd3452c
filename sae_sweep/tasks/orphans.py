"""Features that no other SAE of a sweep has, against those in families."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_sweep.analysis.ablation import Ablation
from sae_sweep.analysis.dictionaries import find_usable
from sae_sweep.analysis.families import Families
from sae_sweep.analysis.unmatched import Contrast, balanced, contrasts, drift
from sae_sweep.tasks.finished import Finished
from sae_sweep.tasks.on_text import Reading


def compare_orphans(
    found: Sequence[Finished], families: Families, reading: Reading | None
) -> tuple[dict[str, list[Contrast]], dict[str, list[Ablation]]]:
    """Properties of orphans and of family members by run, and the loss without either.

    Args:
        found: runs of one hook.
        families: of these runs.
        reading: of text; None: what needs none.
    """
    rows: dict[str, list[Contrast]] = {}
    losses: dict[str, list[Ablation]] = {}
    for one in found:
        if one.entry.name not in families.runs:
            continue
        orphan, live = _orphans(one, families)
        rows[one.entry.name] = contrasts(_properties(one, reading), orphan, live)
        if reading is not None and one.entry.densities is not None:
            sets = balanced(orphan, live, one.entry.densities.float())
            losses[one.entry.name] = reading.ablations(one.reader, sets)
    return rows, losses


def _orphans(one: Finished, families: Families) -> tuple[Bool[Tensor, " d_sae"], Bool[Tensor, " d_sae"]]:
    """Features in no family, and those that could be in one."""
    d_sae, run = len(one.entry.decoder), families.runs.index(one.entry.name)
    nothing = torch.zeros(d_sae, dtype=torch.bool)
    live = nothing.index_fill(0, find_usable([one.entry.decoder], one.entry.densities).ids, True)
    members = families.member_features[families.member_runs == run]
    return live & ~nothing.index_fill(0, members, True), live


def _properties(one: Finished, reading: Reading | None) -> Mapping[str, Tensor]:
    entry, initial = one.entry, one.subject.initial
    found: dict[str, Tensor] = {}
    if entry.densities is not None:
        found["density"] = entry.densities.float()
        found["log10 density"] = entry.densities.float().log10().nan_to_num(neginf=float("nan"))
    if entry.mean_activations is not None:
        found["mean activation"] = entry.mean_activations.float()
    if initial is not None:
        found["drift from the start"] = drift(entry.decoder, initial())
    norms = None if reading is None else reading.logit_norms(one.reader)
    if norms is not None:
        found["direct logit effect"] = norms
    return found
