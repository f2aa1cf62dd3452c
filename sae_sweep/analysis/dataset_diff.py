"""Differences between two datasets seen through one SAE: which features fire in more of one's documents.

A document counts for a feature if the feature fires anywhere in it (max-pooling, as Jiang et al. 2025).
Documents are the units that were drawn: tokens of one document resemble each other, so the intervals of
token frequencies are over documents too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_sweep.analysis.contexts import Contexts, Excerpts, Window
from sae_sweep.analysis.features import Residuals, Subject, Text
from sae_sweep.analysis.firing import Activations
from sae_sweep.analysis.losses import BATCH_TOKENS

Z_95 = 1.959963984540054
"""97.5th percentile of the normal distribution."""


class DocumentText(NamedTuple):
    """A text whose sequences each hold tokens of one document only."""

    text: Text
    """Packed sequences; the mask leaves out special tokens and what fills the last sequence of a document."""
    owners: Int[np.ndarray, " n"]
    """Number of each sequence's document, ascending from 0."""

    @property
    def tokens(self) -> Int[np.ndarray, " documents"]:
        """Tokens of each document that count."""
        return np.bincount(self.owners, self.text.mask.sum(1)).astype(np.int64)


class Fired(NamedTuple):
    """How often each feature fires in the documents of a dataset."""

    tokens: Int[np.ndarray, " documents"]
    """Tokens of each document that count."""
    documents: Int[np.ndarray, " d_sae"]
    """Documents in which each feature fires."""
    counts: Int[np.ndarray, " d_sae"]
    """Tokens on which each feature fires."""
    squares: Float[np.ndarray, " d_sae"]
    """Sum over documents of the squared number of tokens on which it fires."""
    products: Float[np.ndarray, " d_sae"]
    """Sum over documents of that number times the document's tokens."""
    contexts: Excerpts
    """The strongest activations of each feature, at most one of each sequence."""
    before: int
    """Tokens of a context before the one on which its feature fires."""

    @property
    def frequency(self) -> Float[np.ndarray, " d_sae"]:
        """Share of tokens on which each feature fires."""
        return self.counts / self.tokens.sum()

    @property
    def variance(self) -> Float[np.ndarray, " d_sae"]:
        """Variance of `frequency` over documents: that of a ratio of sums, linearised."""
        n, total = len(self.tokens), self.tokens.sum()
        ratio = self.frequency
        spread = self.squares - 2 * ratio * self.products + ratio**2 * np.square(self.tokens).sum()
        return np.maximum(spread, 0) / total**2 * n / max(1, n - 1)


@dataclass(frozen=True)
class Difference:
    """What differs between datasets a and b; an entry per feature. Intervals are of 95 %."""

    documents_a: Float[np.ndarray, " d_sae"]
    """Share of documents of a in which the feature fires."""
    documents_b: Float[np.ndarray, " d_sae"]
    documents: Float[np.ndarray, " d_sae"]
    """`documents_a - documents_b`."""
    documents_low: Float[np.ndarray, " d_sae"]
    """Newcombe's interval of it."""
    documents_high: Float[np.ndarray, " d_sae"]
    documents_p: Float[np.ndarray, " d_sae"]
    """Fisher's exact test, twice the smaller tail; NaN for features that fire in neither."""
    documents_q: Float[np.ndarray, " d_sae"]
    """The same after Benjamini and Hochberg's correction over the features that fire."""
    tokens_a: Float[np.ndarray, " d_sae"]
    """Share of tokens of a on which the feature fires."""
    tokens_b: Float[np.ndarray, " d_sae"]
    tokens: Float[np.ndarray, " d_sae"]
    """`tokens_a - tokens_b`."""
    tokens_low: Float[np.ndarray, " d_sae"]
    """Interval of it over documents (normal, linearised)."""
    tokens_high: Float[np.ndarray, " d_sae"]

    @property
    def order(self) -> Int[np.ndarray, " d_sae"]:
        """Features by falling difference in documents, whichever its sign; equal ones by that in tokens."""
        return np.lexsort((-np.abs(self.tokens), -np.abs(self.documents)))


def read_documents(
    subject: Subject,
    lm: Residuals,
    documents: DocumentText,
    *,
    contexts: int = 5,
    window: Window | None = None,
    between: Callable[[], None] = lambda: None,
) -> Fired:
    """Count where the features of an SAE fire.

    Args:
        subject: the SAE, on the device of the model.
        lm: the language model.
        documents: what is read.
        contexts: contexts that are kept for each feature.
        window: tokens of a context.
        between: called between batches, to obey a stop.
    """
    device, d_sae = subject.sae.W_dec.device, len(subject.sae.W_dec)
    counted = _Counted(d_sae, documents.tokens)
    window = window or Window()
    kept = Contexts(d_sae, contexts, window, device)
    size = max(1, BATCH_TOKENS // documents.text.seq_len)
    with torch.no_grad():
        for start in range(0, len(documents.owners), size):
            between()
            part = slice(start, start + size)
            ids = torch.from_numpy(documents.text.tokens[part]).long().to(device)
            keep = torch.from_numpy(documents.text.mask[part]).to(device)
            x = lm.residuals(ids, [subject.layer])[subject.layer]
            found = Activations.of(subject.sae.encode(x[keep].float()))
            placed = found._replace(rows=keep.flatten().nonzero()[:, 0][found.rows])
            kept.update(placed, placed.values, ids, start)
            owners = documents.owners[part][(placed.rows // ids.shape[1]).cpu().numpy()]
            counted.add(owners, placed.features.cpu().numpy())
    return counted.result(kept.excerpts(), window.before)


class _Counted:
    """Sums over documents, which arrive in order: only the last one of a batch may go on in the next."""

    def __init__(self, d_sae: int, tokens: Int[np.ndarray, " documents"]) -> None:
        self._tokens = tokens
        self._open: int | None = None
        self._row = np.zeros(d_sae, np.int64)
        """Counts of the document that may go on."""
        self._documents, self._counts = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
        self._squares, self._products = np.zeros(d_sae), np.zeros(d_sae)

    def add(self, owners: Int[np.ndarray, " nnz"], features: Int[np.ndarray, " nnz"]) -> None:
        """Add activations, each with its document and feature."""
        for owner in np.unique(owners).tolist():
            if owner != self._open:
                self._close()
                self._open = owner
            self._row += np.bincount(features[owners == owner], minlength=len(self._row))

    def _close(self) -> None:
        if self._open is None:
            return
        row = self._row.astype(float)
        self._documents += self._row > 0
        self._counts += self._row
        self._squares += row**2
        self._products += row * self._tokens[self._open]
        self._row[:] = 0

    def result(self, contexts: Excerpts, before: int) -> Fired:
        self._close()
        self._open = None
        sums = (self._documents, self._counts, self._squares, self._products)
        return Fired(self._tokens, *sums, contexts, before)


def difference(a: Fired, b: Fired) -> Difference:
    """Compare how often features fire in two datasets.

    Both are read with the same SAE.
    """
    n_a, n_b = len(a.tokens), len(b.tokens)
    share_a, share_b = a.documents / n_a, b.documents / n_b
    low, high = newcombe(a.documents, n_a, b.documents, n_b)
    p = fisher(a.documents, n_a, b.documents, n_b)
    p[(a.documents == 0) & (b.documents == 0)] = np.nan
    tokens, half = a.frequency - b.frequency, Z_95 * np.sqrt(a.variance + b.variance)
    return Difference(
        share_a,
        share_b,
        share_a - share_b,
        low,
        high,
        p,
        benjamini_hochberg(p),
        a.frequency,
        b.frequency,
        tokens,
        tokens - half,
        tokens + half,
    )


def fisher(x: Int[np.ndarray, " n"], n_x: int, y: Int[np.ndarray, " n"], n_y: int) -> Float[np.ndarray, " n"]:
    """P of Fisher's exact test that x of n_x and y of n_y have one probability: twice the smaller tail."""
    from scipy.stats import hypergeom

    margin = hypergeom(n_x + n_y, x + y, n_x)
    return np.minimum(1, 2 * np.minimum(margin.cdf(x), margin.sf(x - 1)))


def newcombe(
    x: Int[np.ndarray, " n"], n_x: int, y: Int[np.ndarray, " n"], n_y: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """95 % interval of x / n_x - y / n_y (Newcombe 1998, method 10: from Wilson's intervals of both)."""
    p, q = x / n_x, y / n_y
    (low_p, high_p), (low_q, high_q) = wilson(x, n_x), wilson(y, n_y)
    low = p - q - np.sqrt((p - low_p) ** 2 + (high_q - q) ** 2)
    return low, p - q + np.sqrt((high_p - p) ** 2 + (q - low_q) ** 2)


def wilson(x: Int[np.ndarray, " n"], n: Any) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Wilson's 95 % interval of a share x / n."""
    p, z = x / n, Z_95
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def benjamini_hochberg(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The smallest false discovery rate at which each test is kept (Benjamini and Hochberg 1995).

    NaN, where nothing was tested, stays NaN and counts for nothing.
    """
    from scipy.stats import false_discovery_control

    adjusted, tested = np.full(p.shape, np.nan), ~np.isnan(p)
    if tested.any():
        adjusted[tested] = false_discovery_control(p[tested], method="bh")
    return adjusted
