"""Activations from a known dictionary, in the place of a language model's: what is found can be checked.

A token's residual is a sum of sparse features, drawn from a hash of the token and the two before it, and
noise. The same place in the text always has the same residual, on every device, however it is batched.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_sweep.activations.device import lm_dtype
from sae_sweep.activations.forward import Patch
from sae_sweep.activations.model import LanguageModel
from sae_sweep.config import SYNTHETIC_WIDTH, RunConfig, SaeSweepError, SyntheticDataset
from sae_sweep.text.synthetic import WORDS

_TOGETHER = 4
"""Features of a group that fires together."""
_BLOCK = 1 << 22
"""Tokens times features at once."""
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""Odd multipliers of a 64-bit hash (SplitMix64), as signed numbers."""


def load_synthetic(config: RunConfig, device: torch.device) -> LanguageModel:
    """The stand-in for a language model whose residuals a synthetic dataset describes.

    Raises:
        SaeSweepError: if the dataset is no synthetic one.
    """
    if not isinstance(config.dataset, SyntheticDataset):
        raise SaeSweepError("model=synthetic has no text of its own: give dataset=synthetic")
    dtype = lm_dtype(config.model.dtype, device)
    shape = SimpleNamespace(
        d_model=SYNTHETIC_WIDTH, n_layers=1, n_ctx=2**20, d_vocab=WORDS + 1, n_heads=1, d_mlp=1
    )
    forward = _Synthetic(config.dataset, device, dtype)
    return LanguageModel(forward, shape, {}, _Numbers(), config.model.label, device, dtype)


def true_features(dataset: SyntheticDataset) -> Float[Tensor, "features d_in"]:
    """Directions of the features that all synthetic datasets of a world share, then of this one's own."""
    shared = _directions(dataset.features, dataset.world, -1)
    return torch.cat([shared, _directions(dataset.own, dataset.world, dataset.variant)])


def frequencies(dataset: SyntheticDataset) -> Float[Tensor, " features"]:
    """Probability that each true feature is active at a token; shared and own ones alternate in rank.

    They fall as rank ** -zipf, up to 0.5, and sum to `dataset.active` where that bound allows it.
    """
    ranks = torch.cat([_spread(dataset.features), _spread(dataset.own)]).argsort().argsort() + 1.0
    weights = ranks.double() ** -dataset.zipf
    low, high = 0.0, 2.0**64
    for _ in range(200):  # bisection: a bounded sum grows with the scale
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (weights * middle).clamp(max=0.5).sum() < dataset.active else (low, middle)
        )
    return (weights * high).clamp(max=0.5)


def _spread(count: int) -> Float[Tensor, " count"]:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)


def _directions(count: int, world: int, variant: int) -> Float[Tensor, "count d_in"]:
    """Random unit vectors without a component that a normalisation's mean would remove."""
    generator = torch.Generator().manual_seed(_mixed(world, variant + 1))
    rows = torch.randn(count, SYNTHETIC_WIDTH, generator=generator)
    return nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def _mixed(*seeds: int) -> int:
    """One seed below 2^53 from several."""
    mixed = torch.zeros(1, dtype=torch.int64)
    for seed in seeds:
        mixed = _hash(mixed + seed)
    return int(mixed[0]) & (2**53 - 1)


class _Synthetic:
    """A `Forward` whose residuals are those of a synthetic dataset, and which predicts nothing."""

    attention, fell_back = "eager", None

    def __init__(self, dataset: SyntheticDataset, device: torch.device, dtype: torch.dtype) -> None:
        self.network: nn.Module = nn.Identity()
        self._features = true_features(dataset).to(device)
        self._frequencies = frequencies(dataset).to(device)
        self._dtype = dtype
        self._correlation = dataset.correlation
        power = (self._frequencies * (1 + 1 / 12)).sum().item()  # of sums of features of 0.5 to 1.5
        self._noise = dataset.noise * math.sqrt(power / SYNTHETIC_WIDTH)
        self._seed = _mixed(dataset.world, dataset.variant)

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        found = self._residuals(tokens)
        return dict.fromkeys(layers, found)

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Float[Tensor, "b s v"]:
        """All equal: there is nothing to predict."""
        if patch is not None:
            patch.replace(self._residuals(tokens) if patch.residual is None else patch.residual)
        return self._frequencies.new_zeros(*tokens.shape, WORDS + 1, dtype=torch.float32)

    def _residuals(self, tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b s d_in"]:
        places = _hash(tokens.long() + self._seed)
        for back in (1, 2):
            places = _hash(places + nn.functional.pad(tokens, (back, 0))[:, : tokens.shape[1]])
        size = max(1, _BLOCK // max(1, len(self._features)))
        rows = torch.cat([self._of_places(part) for part in places.flatten().split(size)])
        return rows.view(*tokens.shape, SYNTHETIC_WIDTH).to(self._dtype)

    def _of_places(self, places: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        ids = torch.arange(len(self._features), device=places.device)
        own = _uniform(places, ids)
        together = _uniform(places, 2**20 + ids // _TOGETHER)
        follows = _uniform(places, 2**21 + ids) < self._correlation
        active = torch.where(follows, together, own) < self._frequencies
        values = (0.5 + _uniform(places, 2**22 + ids)) * active
        return values.float() @ self._features + self._noise * _normal(places)


def _normal(places: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
    """Standard normal numbers (Box and Muller 1958)."""
    ids = torch.arange(SYNTHETIC_WIDTH, device=places.device)
    radius = (-2 * (1 - _uniform(places, 2**23 + ids)).log()).sqrt()
    return (radius * (2 * math.pi * _uniform(places, 2**24 + ids)).cos()).float()


def _uniform(places: Int[Tensor, " n"], numbers: Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
    """Numbers from 0 to below 1, one for each pair."""
    return (_hash(places[:, None] + _hash(numbers)) & (2**53 - 1)).double() / 2**53


def _hash(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Mix 64 bits so that each depends on all (SplitMix64; Steele et al. 2014)."""
    mixed = values + _GOLDEN
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(values: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """A shift to the right that fills with zeros; torch's own copies the sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


class _Numbers:
    """The tokenizer of words that are numbers; 0 is BOS and end of text."""

    bos_id = eot_id = 0
    has_bos = True
    special_ids = frozenset({0})
    size = WORDS + 1

    def decode_batch(self, documents: list[list[int]]) -> list[str]:
        return [" ".join(map(str, document)) for document in documents]

    def strings(self, count: int) -> list[str]:
        return [str(number) for number in range(count)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]
