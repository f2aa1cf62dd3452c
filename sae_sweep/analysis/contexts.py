"""The text around activations of each feature, kept for the few that rank highest, in bounded memory."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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


class Excerpts(NamedTuple):
    """Contexts in a list, those of a feature together."""

    features: Int[Tensor, " n"]
    ranks: Int[Tensor, " n"]
    """Number of each within its feature, from 0."""
    priorities: Float[Tensor, " n"]
    sequences: Int[Tensor, " n"]
    """Number of the sequence in the whole text."""
    positions: Int[Tensor, " n"]
    """Position of the activation that was ranked; it stands at `window.before` in the two below."""
    tokens: Int[Tensor, "n window"]
    """Ids; NOTHING outside the sequence."""
    activations: Float[Tensor, "n window"]
    """Activations of the feature; 0 outside the sequence."""


class Contexts:
    """For each feature, the `most` places of highest priority.

    With activations as priorities these are the top activating contexts; with `random_priorities`, a uniform
    sample of its activations. Both depend only on the text, not on how it is cut into batches or merged.
    """

    def __init__(
        self, d_sae: int, most: int, window: Window, device: torch.device, *, one_per_sequence: bool = True
    ) -> None:
        self.window = window
        self._one_per_sequence = one_per_sequence
        shape = (d_sae, most)
        # sorted, with the slot of what belongs to each below: what is kept stays where it was written
        self._priorities = torch.full(shape, float(NOTHING), device=device)
        self._slots = torch.arange(most, dtype=torch.int32, device=device).repeat(d_sae, 1)
        self._places = torch.full((*shape, 2), NOTHING, device=device)
        """Sequence and position."""
        self._tokens = torch.full((*shape, window.size), NOTHING, dtype=torch.int32, device=device)
        self._activations = torch.zeros(*shape, window.size, device=device)

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
        features = activations.features[chosen]
        entering, rows, slots = self._enter(features, priorities[chosen].float())
        chosen = chosen[entering]
        at = activations.rows[chosen]
        where = (rows, slots)
        length = tokens.shape[1]
        self._places[where] = torch.stack([at // length + first_sequence, at % length], 1)
        self._tokens[where], self._activations[where] = self._windows(activations, chosen, tokens)

    def merge(self, other: "Contexts") -> None:
        """Add another part of the text, which comes later."""
        theirs = other.excerpts()
        device = self._priorities.device
        entering, rows, slots = self._enter(theirs.features.to(device), theirs.priorities.to(device))
        where = (rows, slots)
        places = torch.stack([theirs.sequences, theirs.positions], 1)
        for ours, values in (
            (self._places, places),
            (self._tokens, theirs.tokens),
            (self._activations, theirs.activations),
        ):
            ours[where] = values.to(device)[entering]

    def excerpts(self) -> Excerpts:
        """All that is kept, of each feature from the highest priority on."""
        return self._excerpts(self._priorities > NOTHING)

    def by_decile(self, deciles: Float[Tensor, "9 d_sae"], most: int) -> Excerpts:
        """The first `most` of what is kept from each tenth of a feature's activations, lowest tenth first.

        Args:
            deciles: the nine deciles of each feature's activations, on the CPU.
            most: excerpts per tenth; fewer where fewer are kept.
        """
        centre = self._activations[..., self.window.before].gather(1, self._slots.long())
        tenths = tenth_of(centre.cpu(), deciles[..., None].expand(-1, -1, centre.shape[1]))
        tenths[self._priorities.cpu() == NOTHING] = 0
        chosen = torch.zeros_like(tenths, dtype=torch.bool)
        for tenth in range(1, 11):
            chosen |= (tenths == tenth) & ((tenths == tenth).cumsum(1) <= most)
        found = self._excerpts(chosen.to(centre.device))
        order = (11 * found.features + tenths[chosen].to(centre.device)).argsort(stable=True)
        return Excerpts(*(part[order] for part in found))._replace(ranks=found.ranks)

    def _excerpts(self, chosen: Bool[Tensor, "d_sae most"]) -> Excerpts:
        features, _ = chosen.nonzero(as_tuple=True)
        where = (features, self._slots[chosen].long())
        sequences, positions = self._places[where].unbind(1)
        return Excerpts(
            features,
            _ranks(features),
            self._priorities[chosen],
            sequences,
            positions,
            self._tokens[where],
            self._activations[where],
        )

    def _candidates(self, activations: Activations, priorities: Tensor, length: int) -> Tensor:
        """Activations that may enter: above the last that is kept, and the best of a feature in a sequence.

        Sorted by feature, and within a feature from the highest priority on.
        """
        rows, features, _ = activations
        able = (priorities > self._priorities[features, -1]).nonzero()[:, 0]
        able = able[priorities[able].argsort(descending=True, stable=True)]
        if self._one_per_sequence and len(able):
            places = features[able] * (rows[-1] // length + 1) + rows[able] // length
            places, order = places.sort(stable=True)
            first = torch.ones_like(places, dtype=torch.bool)
            first[1:] = places[1:] != places[:-1]
            able = able[order[first].sort().values]
        return able[features[able].argsort(stable=True)]

    def _enter(
        self, features: Int[Tensor, " n"], priorities: Float[Tensor, " n"]
    ) -> tuple[Int[Tensor, " entering"], Int[Tensor, " entering"], Int[Tensor, " entering"]]:
        """Give candidates slots of those that they displace; of ties, what is kept comes first.

        Args:
            features: ascending.
            priorities: descending within a feature.

        Returns which candidates enter, their features, and their slots.
        """
        most = self._priorities.shape[1]
        ranks = _ranks(features)
        new = (ranks < most).nonzero()[:, 0]
        if not len(new):
            return new, new, new
        touched, row = features[new].unique_consecutive(return_inverse=True)
        wide = int(ranks[new].max()) + 1
        fresh = torch.full((len(touched), wide), float(NOTHING), device=priorities.device)
        fresh[row, ranks[new]] = priorities[new]
        both = torch.cat([self._priorities[touched], fresh], 1)
        sorted_, order = both.sort(dim=1, descending=True, stable=True)
        # a candidate takes the slot of the one that falls out: as many enter as fall out
        enters, leaves = order[:, :most] >= most, order[:, most:] < most
        slots = self._slots[touched]
        freed = slots[leaves.nonzero()[:, 0], order[:, most:][leaves]]
        slots = slots.gather(1, order[:, :most].clamp(max=most - 1))
        slots[enters] = freed
        self._priorities[touched], self._slots[touched] = sorted_[:, :most], slots
        at = order[:, :most][enters] - most
        group = enters.nonzero()[:, 0]
        number = torch.full((len(touched), wide), NOTHING, device=features.device)
        number[row, ranks[new]] = new
        return number[group, at], touched[group], freed.long()

    def _windows(self, activations: Activations, chosen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and the feature's activations around each chosen one, [n, window]."""
        length, d_sae = tokens.shape[1], len(self._priorities)
        offsets = torch.arange(-self.window.before, self.window.after + 1, device=tokens.device)
        rows = activations.rows[chosen][:, None] + offsets
        inside = rows.div(length, rounding_mode="floor") == activations.rows[chosen][:, None] // length
        ids = tokens.flatten()[rows.clamp(0, tokens.numel() - 1)]
        keys = activations.rows * d_sae + activations.features
        wanted = rows * d_sae + activations.features[chosen][:, None]
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        fires = inside & (keys[found] == wanted)
        return ids.int().masked_fill(~inside, NOTHING), activations.values[found].float() * fires


def tenth_of(activations: Float[Tensor, "..."], deciles: Float[Tensor, "9 ..."]) -> Int[Tensor, "..."]:
    """In which tenth of its feature's activations each lies: 1 to 10, one that equals a decile below it."""
    return 1 + (activations > deciles).sum(0)


def random_priorities(
    seed: int, sequences: Int[Tensor, " nnz"], positions: Int[Tensor, " nnz"], features: Int[Tensor, " nnz"]
) -> Float[Tensor, " nnz"]:
    """Pseudo-random numbers between 0 and 1, the same for the same place and feature (splitmix64)."""
    state = torch.full_like(sequences, seed)
    for part in (sequences, positions, features):
        state = _mixed(state + part * -7046029254386353131)  # 0x9E3779B97F4A7C15
    # 23 bits and a half are exact in float32; an Apple GPU has no float64
    return ((state >> 41) & 0x7FFFFF).float().add(0.5).div(2**23)


def _mixed(state: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014); integers wrap around."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * factor
    return state ^ ((state >> 31) & (2**33 - 1))


def _ranks(features: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Each entry's rank within its feature, for sorted features."""
    _, counts = features.unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.arange(len(features), device=features.device) - starts
