"""How far texts are from the one that a model sampled: by first tokens of documents, and by all tokens."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.analysis.divergence import (
    PSEUDOCOUNT,
    divergence,
    drawn_divergence,
    first_divergence,
    frequencies,
    thinned,
)
from sae_sweep.config import DatasetConfig, FaithfulDataset, SaeSweepError, escaped
from sae_sweep.report.formatting import TextTable
from sae_sweep.signals import raise_if_requested
from sae_sweep.text import TextSource, open_documents
from sae_sweep.text.faithful import FaithfulText

_COUNTED = 200_000
"""Tokens of each text, in documents drawn at random, whose frequencies are counted."""
_BEGINNINGS = 1000
"""Documents at most whose first tokens are counted: as many of each text, for fewer look farther away."""
_BEGINNING = 200
"""Characters of a document in which its first token surely ends."""
_AT_ONCE = 50
"""Documents that are tokenised together."""
_NOTE = (
    "First tokens of documents against lm's exact distribution, and all tokens (unigram) against those of "
    f"the sampled text; in nats, JS is at most 0.693. KL: {PSEUDOCOUNT:g} is added to each count. A few "
    "first tokens look far away even if they are drawn from lm itself, as in the first row."
)
_HEADS = ("text", "documents", "tokens", "KL(lm|text)", "KL(text|lm)", "half sum", "JS", "unigram JS")
_DROPPED = (5, 2, 4, 3)
"""Columns that a narrow terminal lacks, the first one first."""
_UNIGRAM = "unigram_jensen_shannon"


class TokenCounts(NamedTuple):
    """How often a text has each token."""

    first: Int[Tensor, " vocabulary"]
    """As the first token of a document."""
    every: Int[Tensor, " vocabulary"]

    @classmethod
    def of(cls, source: TextSource, lm: LanguageModel) -> "TokenCounts":
        """Count tokens of training documents in a random order.

        Raises:
            SaeSweepError: if the text has none.
        """
        size = lm.tokenizer.size
        first, every = (torch.zeros(size, dtype=torch.int64) for _ in range(2))
        documents = _documents(source)
        while (first.sum() < _BEGINNINGS or every.sum() < _COUNTED) and (
            texts := list(islice(documents, _AT_ONCE))
        ):
            raise_if_requested()
            if first.sum() < _BEGINNINGS:
                beginnings = lm.tokenizer.encode_batch([text[:_BEGINNING] for text in texts])
                first += _counted([ids[:1] for ids in beginnings], size)
            if every.sum() < _COUNTED:
                every += _counted(lm.tokenizer.encode_batch(texts), size)
        if not every.any():
            raise SaeSweepError(f"{source.label} has no token to compare")
        return cls(first, every)


def _counted(documents: list[list[int]], size: int) -> Int[Tensor, " vocabulary"]:
    return torch.bincount(torch.tensor(list(chain(*documents)), dtype=torch.int64), minlength=size)


def compare(
    dataset: FaithfulDataset, others: Sequence[DatasetConfig], cache: Path, device: str
) -> dict[str, Any]:
    """Describe a sampled text as JSON values, with an entry for it and for each other text against its model.

    The first entry is what as many first tokens would have that are drawn from the model itself: what is not
    above it is no difference.

    Raises:
        SaeSweepError: if a text or the model cannot be read.
    """
    lm = load_language_model(dataset.model, pick_device(device))
    logits, _ = lm.next_logits(torch.tensor([[lm.tokenizer.bos_id]]))
    exact = logits[0, : lm.tokenizer.size].double().softmax(-1).cpu()
    source = FaithfulText(dataset, cache)
    own = TokenCounts.of(source, lm)
    counts = [own, *(TokenCounts.of(open_documents(other, cache), lm) for other in others)]
    documents = min(int(one.first.sum()) for one in counts)
    drawn = drawn_divergence(exact, documents)._asdict()
    rows: list[dict[str, Any]] = [
        {"text": None, "documents": documents, "tokens": None, **drawn, _UNIGRAM: None}
    ]
    for other, one in zip((dataset, *others), counts, strict=True):
        first = first_divergence(exact, thinned(one.first, documents))._asdict()
        every = divergence(frequencies(own.every), frequencies(one.every)).jensen_shannon
        tokens = int(one.every.sum())
        rows.append({"text": other.name, "documents": documents, "tokens": tokens, **first, _UNIGRAM: every})
    found = source.manifest
    return {**found.provenance, "documents": found.documents, "tokens": found.tokens, "texts": rows}


def described(found: Mapping[str, Any], width: int) -> str:
    """What `compare` found as text, for a terminal of `width` characters."""
    speed = found["tokens_per_second"]
    about = (
        f"{found['model']}: {found['documents']:,} documents of {found['tokens']:,} tokens, "
        "sampled from BOS alone"
        + (f" at {speed:,.0f} tokens/s on {found['device']}" if speed else "")
        + f"; of {found['sampled_documents']:,} sampled it ended {found['ended']:,} itself; left out "
        f"{found['empty']:,} without text and {found['repeated']:,} repeats; {found['same_tokens']:,} are "
        "tokenised to the tokens that were sampled"
    )
    table = TextTable(_HEADS, left=(0,))
    for row in found["texts"]:
        name, documents, tokens, *values = row.values()
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        known = "" if tokens is None else f"{tokens:,}"
        table.add(["(drawn from lm)" if name is None else name, f"{documents:,}", known, *shown])
    lines = [*textwrap.wrap(escaped(about), width), "", *table.lines(width, drop=_DROPPED)]
    return "\n".join([*lines, *textwrap.wrap(_NOTE, width), ""])


def _documents(source: TextSource) -> Iterator[str]:
    for unit in np.random.default_rng(0).permutation(source.units):
        for text, _ in source.read(int(unit)):
            yield text
