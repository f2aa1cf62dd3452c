"""One pass over text for the features of several SAEs: what they do by position, and where they fire most."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweep.analysis.codes import MOST, Codes
from sae_sweep.analysis.contexts import Contexts, Window, random_priorities
from sae_sweep.analysis.evaluation import Autoencoder
from sae_sweep.analysis.firing import Activations, ActiveByPosition, Firing
from sae_sweep.analysis.losses import BATCH_TOKENS, LanguageModelLosses
from sae_sweep.analysis.quantiles import BYTES_PER_FEATURE, EXACT_VALUES, FeatureQuantiles
from sae_sweep.analysis.top_tokens import PAIRS, TokenSums
from sae_sweep.config import SaeSweepError

_ACTIVE = 100
"""Non-zero activations per token that memory is reckoned with."""


class Residuals(LanguageModelLosses, Protocol):
    """The part of a language model that the analysis uses."""

    def residuals(self, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """`resid_pre` [b, s, d] of each layer."""


@dataclass(frozen=True)
class Subject:
    """An SAE, and the layer whose residual stream it reads."""

    sae: Autoencoder
    layer: int


@dataclass(frozen=True)
class Text:
    """Packed sequences that are read."""

    tokens: Int[np.ndarray, "n seq"]
    mask: Bool[np.ndarray, "n seq"]
    """True where a token counts, False at special tokens."""
    first_sequence: int = 0
    """Number of the first sequence, if these are a part of a longer text."""

    @property
    def seq_len(self) -> int:
        return self.tokens.shape[1]


class Kept(NamedTuple):
    """How much of the text is kept for each feature."""

    top: int = 20
    """Top activating contexts."""
    sample: int = 50
    """Contexts sampled uniformly from the deciles of the activations, a tenth (rounded up) from each."""
    window: Window = Window()
    seed: int = 0
    """Seed of the sample."""

    @property
    def per_decile(self) -> int:
        """Sampled contexts of each decile."""
        return -(-self.sample // 10)

    @property
    def pool(self) -> int:
        """Activations sampled before the deciles are known: 1 decile in 10,000 then lacks some of its own."""
        return 10 * math.ceil(self.per_decile + 4 * math.sqrt(self.per_decile) + 4)


class PositionMeans:
    """A mean by position, from sums in float64 on the CPU."""

    def __init__(self, positions: int) -> None:
        self.sums = torch.zeros(positions, dtype=torch.float64)
        self.counts = torch.zeros(positions, dtype=torch.int64)

    def update(self, values: Float[Tensor, " n"], positions: Int[Tensor, " n"]) -> None:
        """Add values, each with its position."""
        values, positions = values.cpu().double(), positions.cpu()
        self.sums.index_add_(0, positions, values)
        self.counts += torch.bincount(positions, minlength=len(self.counts))

    def merge(self, other: "PositionMeans") -> None:
        """Add another part of the text."""
        self.sums += other.sums
        self.counts += other.counts

    @property
    def means(self) -> Float[Tensor, " positions"]:
        """NaN where nothing was counted."""
        return self.sums / self.counts


class _Latents(NamedTuple):
    """Non-zero latents of a batch of tokens, signed."""

    tokens: int
    rows: Int[Tensor, " nnz"]
    features: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]

    @classmethod
    def of(cls, f: Float[Tensor, "tokens d_sae"]) -> "_Latents":
        rows, features = f.nonzero(as_tuple=True)
        return cls(len(f), rows, features, f[rows, features])

    def decoded(self, sae: Autoencoder) -> Float[Tensor, "tokens d_in"]:
        """Reconstruction in SAE-input space; a dense product would cost as much as encoding."""
        bias = sae.decode_normalised(self.values.new_zeros(1, len(sae.W_dec)))
        counts = torch.bincount(self.rows, minlength=self.tokens)
        return bias + torch.nn.functional.embedding_bag(
            self.features,
            sae.W_dec,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=self.values,
        )

    def sizes(self) -> Activations:
        """Absolute values: a JumpReLU threshold below 0 lets negative latents through."""
        return Activations(self.rows, self.features, self.values.abs())


class PositionAnalysis:
    """What one pass collects about an SAE by position; `merge` adds a part of the text that comes later."""

    def __init__(self, subject: Subject, seq_len: int) -> None:
        d_sae, device = len(subject.sae.W_dec), subject.sae.W_dec.device
        self.subject, self.seq_len = subject, seq_len
        self.firing = Firing(d_sae, seq_len, device)
        self.special = ActiveByPosition(d_sae, seq_len, device)
        """Activations at the tokens that do not count, such as BOS at the first position."""
        self.codes = Codes(d_sae)
        self.mse, self.l1 = PositionMeans(seq_len), PositionMeans(seq_len)
        """Squared error in SAE-input space, averaged over d_in, and the sum of the activations, per token."""
        self.ce_clean, self.ce_sae = PositionMeans(seq_len), PositionMeans(seq_len)
        """Next-token cross-entropy in nats at the position that predicts, without and with the SAE."""

    def update(
        self, tokens: Int[Tensor, "b s"], keep: Bool[Tensor, "b s"], x: Float[Tensor, "b s d"], first: int
    ) -> Float[Tensor, "b s d"]:
        """Add a batch, and return its residuals with the SAE spliced in at the tokens that count.

        Args:
            tokens: ids.
            keep: tokens that count.
            x: raw residuals.
            first: number of the first of these sequences in the whole text.
        """
        sae, positions = self.subject.sae, keep.nonzero()[:, 1]
        inputs = sae.normalise(x[keep].float())
        latents = _Latents.of(sae.encode(x[keep].float()))
        out = latents.decoded(sae)
        found = latents.sizes()
        self.mse.update((inputs.x - out).square().mean(1), positions)
        l1 = found.values.new_zeros(len(out), dtype=self.firing.sums.dtype)
        self.l1.update(l1.index_add_(0, found.rows, found.values.to(l1.dtype)), positions)
        self._add_activations(found, tokens, keep, first)
        if not keep.all():
            others = _Latents.of(sae.encode(x[~keep].float())).sizes()
            self.special.update(others, (~keep).nonzero()[:, 1])
        spliced = x.clone()
        spliced[keep] = inputs.undo(out).to(x.dtype)
        return spliced

    def _add_activations(self, found: Activations, tokens: Tensor, keep: Tensor, first: int) -> None:
        sequences, positions = keep.nonzero(as_tuple=True)
        self.firing.update(found, positions)
        self.codes.update(found, positions, sequences + first)

    def merge(self, other: "PositionAnalysis") -> None:
        """Add a part of the text that comes later."""
        for name, ours in vars(self).items():
            if hasattr(ours, "merge"):
                ours.merge(getattr(other, name))


class FeatureAnalysis(PositionAnalysis):
    """All that one pass collects about an SAE: by position, by feature and by token, and the text itself."""

    def __init__(self, subject: Subject, seq_len: int, vocabulary: int, kept: Kept | None = None) -> None:
        super().__init__(subject, seq_len)
        self.kept = kept = kept or Kept()
        d_sae, device = len(subject.sae.W_dec), subject.sae.W_dec.device
        self.quantiles = FeatureQuantiles(d_sae)
        self.token_sums = TokenSums(d_sae, vocabulary)
        self.top = Contexts(d_sae, kept.top, kept.window, device)
        self.sample = Contexts(d_sae, kept.pool, kept.window, device, one_per_sequence=False)
        """A uniform sample of activations, of which `by_decile` takes `kept.per_decile` from each."""

    def _add_activations(self, found: Activations, tokens: Tensor, keep: Tensor, first: int) -> None:
        super()._add_activations(found, tokens, keep, first)
        self.quantiles.update(found.features, found.values)
        self.token_sums.update(found.features, tokens[keep][found.rows], found.values)
        rows = keep.flatten().nonzero()[:, 0][found.rows]  # of all tokens, special ones included
        placed, length = found._replace(rows=rows), tokens.shape[1]
        self.top.update(placed, found.values, tokens, first)
        chance = random_priorities(self.kept.seed, rows // length + first, rows % length, found.features)
        self.sample.update(placed, chance, tokens, first)


class Memory(NamedTuple):
    """Bytes that the analysis of one SAE holds."""

    tables: int
    """From the start, on the device of the SAE."""
    text: int
    """At most, for what it keeps of the text; on the CPU."""


def memory_needed(d_sae: int, text: Text, kept: Kept, passes: int) -> Memory:
    """Estimates the memory of the analysis of one SAE, with `passes` passes over the text in all."""
    active = text.tokens.size * _ACTIVE
    contexts = d_sae * (kept.top + kept.pool) * (8 * kept.window.size + 24)
    quantiles = 24 * min(active, EXACT_VALUES) + (BYTES_PER_FEATURE * d_sae if active > EXACT_VALUES else 0)
    return Memory(
        tables=passes * 8 * text.seq_len * d_sae + contexts,
        text=passes * 12 * min(active, MOST) + quantiles + 40 * min(active, PAIRS),
    )


def analyse_features(
    subjects: Mapping[str, Subject],
    lm: Residuals,
    text: Text,
    vocabulary: int,
    kept: Kept | None = None,
    *,
    between: Callable[[], None] = lambda: None,
) -> dict[str, FeatureAnalysis]:
    """Analyse the features of SAEs that read the same text; they share each pass of the language model.

    Args:
        subjects: SAEs by name, on the device of the model.
        lm: the language model.
        text: what is read.
        vocabulary: number of token ids.
        kept: how much text is kept.
        between: called between batches, to obey a stop.

    Raises:
        SaeSweepError: if no token counts.
    """
    found = {
        name: FeatureAnalysis(subject, text.seq_len, vocabulary, kept) for name, subject in subjects.items()
    }
    _read(list(found.values()), lm, text, between)
    return found


def analyse_positions(
    subjects: Mapping[str, Subject], lm: Residuals, text: Text, *, between: Callable[[], None] = lambda: None
) -> dict[str, PositionAnalysis]:
    """Analyse only what SAEs do by position: for a language model whose positions are changed.

    Raises:
        SaeSweepError: if no token counts.
    """
    found = {name: PositionAnalysis(subject, text.seq_len) for name, subject in subjects.items()}
    _read(list(found.values()), lm, text, between)
    return found


def _read(
    analyses: Sequence[PositionAnalysis], lm: Residuals, text: Text, between: Callable[[], None]
) -> None:
    if not text.mask.any():
        raise SaeSweepError("the text has no tokens that are not special: give more text")
    size = max(1, BATCH_TOKENS // text.seq_len)
    with torch.no_grad():
        for start in range(0, len(text.tokens), size):
            between()
            part = slice(start, start + size)
            _analyse_batch(analyses, lm, text.tokens[part], text.mask[part], start + text.first_sequence)


def _analyse_batch(
    analyses: Sequence[PositionAnalysis], lm: Residuals, tokens: np.ndarray, mask: np.ndarray, first: int
) -> None:
    device = analyses[0].subject.sae.W_dec.device
    ids = torch.from_numpy(np.ascontiguousarray(tokens)).long().to(device)
    keep = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
    residuals = lm.residuals(ids, sorted({one.subject.layer for one in analyses}))
    clean = lm.losses(ids)
    predicts = keep[:, :-1].nonzero()[:, 1]
    for one in analyses:
        layer = one.subject.layer
        spliced = one.update(ids, keep, residuals[layer], first)
        losses = lm.losses(ids, layer, parts_of(spliced), residuals[layer])
        one.ce_clean.update(clean[keep[:, :-1]], predicts)
        one.ce_sae.update(losses[keep[:, :-1]], predicts)


def parts_of(whole: Float[Tensor, "b s d"]) -> Callable[[Tensor], Tensor]:
    """Give the rows of `whole` in turn: the LM may run a batch in consecutive parts."""
    done = 0

    def part(x: Tensor) -> Tensor:
        nonlocal done
        done += len(x)
        return whole[done - len(x) : done]

    return part
