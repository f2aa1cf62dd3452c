"""The text around activations of each feature, kept for the few that rank highest, in bounded memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.firing import Activations

NOTHING = -1
"""Token id outside the sequence, and priority of an empty place."""


class Window(NamedTuple):
    """How many tokens are kept on either side of one on which a feature fires."""

    before: int = 12
    after: int = 6

    @property
    def size(self) -> int:
        return self.before + 1 + self.after


class Contexts:
    """For each feature, the `most` places of highest priority, at most one of each sequence, best first.

    With activations as priorities these are the top activating contexts; with `random_priorities`, a uniform
    sample of its activations. Both depend only on the text, not on how it is cut into batches or merged.
    """

    def __init__(self, d_sae: int, most: int, window: Window, device: torch.device) -> None:
        self.window = window
        shape = (d_sae, most)
        self.priorities = torch.full(shape, float(NOTHING), device=device)
        self.sequences = torch.full(shape, NOTHING, device=device)
        """Number of the sequence in the whole text."""
        self.positions = torch.full(shape, NOTHING, device=device)
        """Position of the activation that was ranked; it stands at `window.before` in the two below."""
        self.tokens = torch.full((*shape, window.size), NOTHING, dtype=torch.int32, device=device)
        self.activations = torch.zeros(*shape, window.size, device=device)

    def update(
        self,
        activations: Activations,
        priorities: Float[Tensor, " nnz"],
        tokens: Int[Tensor, "b s"],
        first_sequence: int,
    ) -> None:
        """Add a batch.

        Args:
            activations: non-zeros of the batch; their rows count all b x s tokens.
            priorities: above 0, one per activation.
            tokens: ids of the sequences.
            first_sequence: number of the first of them in the whole text.
        """
        chosen = self._candidates(activations, priorities, tokens.shape[1])
        features, ranks = _ranked(activations.features[chosen])
        kept = ranks < self.priorities.shape[1]
        chosen, features, ranks = chosen[kept], features[kept], ranks[kept]
        touched, at = features.unique(return_inverse=True)
        fresh = Contexts(len(touched), self.priorities.shape[1], self.window, self.priorities.device)
        rows = activations.rows[chosen]
        fresh.priorities[at, ranks] = priorities[chosen].float()
        fresh.sequences[at, ranks] = rows // tokens.shape[1] + first_sequence
        fresh.positions[at, ranks] = rows % tokens.shape[1]
        fresh.tokens[at, ranks], fresh.activations[at, ranks] = self._windows(activations, chosen, tokens)
        self._take(fresh, touched)

    def merge(self, other: "Contexts") -> None:
        """Add another part of the text, which comes later."""
        self._take(other, torch.arange(len(self.priorities), device=self.priorities.device))

    def _candidates(self, activations: Activations, priorities: Tensor, length: int) -> Tensor:
        """Activations that may enter: the best of a feature in a sequence, above the last that is kept.

        Sorted by feature, and within a feature from the highest priority on.
        """
        rows, features, _ = activations
        able = (priorities > self.priorities[features, -1]).nonzero()[:, 0]
        able = able[priorities[able].argsort(descending=True, stable=True)]
        places = features[able] * (rows.max() // length + 1 if len(rows) else 1) + rows[able] // length
        places, order = places.sort(stable=True)
        first = torch.ones_like(places, dtype=torch.bool)
        first[1:] = places[1:] != places[:-1]
        best = able[order[first]]
        best = best[priorities[best].argsort(descending=True, stable=True)]
        return best[features[best].argsort(stable=True)]

    def _windows(self, activations: Activations, chosen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and the feature's activations around each chosen one, [n, window]."""
        length, d_sae = tokens.shape[1], len(self.priorities)
        offsets = torch.arange(-self.window.before, self.window.after + 1, device=tokens.device)
        rows = activations.rows[chosen][:, None] + offsets
        inside = rows.div(length, rounding_mode="floor") == activations.rows[chosen][:, None] // length
        ids = tokens.flatten()[rows.clamp(0, tokens.numel() - 1)]
        keys = activations.rows * d_sae + activations.features
        wanted = rows * d_sae + activations.features[chosen][:, None]
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        fires = inside & (keys[found] == wanted)
        return ids.int().masked_fill(~inside, NOTHING), activations.values[found].float() * fires

    def _take(self, other: "Contexts", features: Tensor) -> None:
        """Merge the rows of another one into those of some features; of ties, ours come first."""
        both = torch.cat([self.priorities[features], other.priorities], 1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, : self.priorities.shape[1]]
        for name in ("priorities", "sequences", "positions", "tokens", "activations"):
            mine, theirs = getattr(self, name), getattr(other, name)
            pool = torch.cat([mine[features], theirs], 1)
            where = order if pool.ndim == order.ndim else order[..., None].expand(-1, -1, pool.shape[-1])
            mine[features] = pool.gather(1, where)


def random_priorities(
    seed: int, sequences: Int[Tensor, " nnz"], positions: Int[Tensor, " nnz"], features: Int[Tensor, " nnz"]
) -> Float[Tensor, " nnz"]:
    """Pseudo-random numbers between 0 and 1, the same for the same place and feature (splitmix64)."""
    state = torch.full_like(sequences, seed)
    for part in (sequences, positions, features):
        state = _mixed(state + part * -7046029254386353131)  # 0x9E3779B97F4A7C15
    return ((state >> 40) & 0xFFFFFF).double().add(1).div(2**24 + 1).float()


def _mixed(state: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); integers wrap around."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * factor
    return state ^ ((state >> 31) & (2**33 - 1))


def _ranked(features: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Sorted features, and each entry's rank within its feature."""
    _, counts = features.unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return features, torch.arange(len(features), device=features.device) - starts
