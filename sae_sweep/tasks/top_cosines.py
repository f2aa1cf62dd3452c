"""The nearest rows of SAEs that differ in the seed, in the dataset, or in both: the study's Figure 11."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from sae_sweep.analysis.dictionaries import Matrix, Side, random_rows, rows_of
from sae_sweep.analysis.neighbours import Nearest, nearest
from sae_sweep.analysis.pairs import varied_keys
from sae_sweep.report.measure_figures import TopCosines, top_cosines_figure
from sae_sweep.report.panels import Drawn
from sae_sweep.signals import raise_if_requested
from sae_sweep.tasks.finished import Finished

_VARIED: Mapping[str, set[str]] = {
    "seed": {"seed"},
    "dataset": {"dataset"},
    "seed and dataset": {"seed", "dataset"},
}
_KINDS: Sequence[tuple[Matrix, Side]] = (
    ("encoder", "features"),
    ("decoder", "features"),
    ("encoder", "neurons"),
    ("decoder", "neurons"),
)
_MOST = 4


def draw_top_cosines(found: Sequence[Finished], undertrained: float, device: torch.device) -> Drawn | None:
    """Draw the four nearest rows by encoder and decoder, features and neurons, for each way to differ.

    Args:
        found: runs of a sweep; the first trained one that has counterparts is compared with them.
        undertrained: limit of the match to the own start.
        device: where products are computed.

    Returns None if no two trained runs differ in seed or dataset alone.
    """
    trained = [one for one in found if not one.entry.init_match > undertrained]
    pairs = max((list(_counterparts(one, trained)) for one in trained), key=len, default=[])
    if not pairs:
        return None
    first = pairs[0][1]
    panels = [TopCosines(f"other {label}", *_compare(first, other, device)) for label, first, other in pairs]
    return top_cosines_figure(panels, f"The four nearest rows of the other SAE\n{first.entry.name}")


def _counterparts(one: Finished, trained: Sequence[Finished]) -> Iterator[tuple[str, Finished, Finished]]:
    """The first run that differs from `one` in each of the ways and is of its size."""
    for label, keys in _VARIED.items():
        for other in trained:
            differs = set(varied_keys(one.entry.keys, other.entry.keys)) == keys
            if differs and one.entry.decoder.shape == other.entry.decoder.shape:
                yield label, one, other
                break


def _compare(a: Finished, b: Finished, device: torch.device) -> tuple[dict[str, Nearest], dict[str, float]]:
    found, random = {}, {}
    saes = a.subject.load(), b.subject.load()
    for matrix, side in _KINDS:
        raise_if_requested()
        ours, theirs = (rows_of(sae, matrix, side).unit.to(device) for sae in saes)
        name = f"{matrix} {side}"
        found[name] = Nearest(*(part.cpu() for part in nearest(ours, theirs, _MOST)))
        by_chance = nearest(ours, random_rows(len(theirs), theirs.shape[1], 0).to(device))
        random[name] = by_chance.mmcs_a_to_b
    return found, random
