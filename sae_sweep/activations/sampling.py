"""Text sampled from a language model: from BOS alone, temperature 1, all tokens, until the end of the text.

Every token is drawn from the model's exact distribution, in float32, through a cache of keys and values.
"""

import logging
import platform
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.activations.device import device_kind, pick_device
from sae_sweep.activations.loading import load_language_model
from sae_sweep.activations.model import LanguageModel
from sae_sweep.activations.model_files import weights_fingerprint
from sae_sweep.config import FaithfulDataset, SaeSweepError
from sae_sweep.progress import Progress
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import lock_folder, remove_partials
from sae_sweep.text.faithful import Block, FaithfulFiles, Manifest
from sae_sweep.text.source import text_number

log = logging.getLogger(__name__)

CACHE_TOLERANCE = 1e-3
"""Largest difference of a log probability, with and without the cache, that counts as rounding; in nats."""
_DRAWN_AT_ONCE = 1 << 18
"""Logits whose float64 sums stay in a processor's cache."""
_COMPACT_BELOW = 0.75
"""Share of documents still unfinished below which the finished ones leave the batch."""


class Sampled(NamedTuple):
    """A document as it was sampled."""

    tokens: list[int]
    """Token ids, without BOS and end-of-text."""
    ended: bool
    """Whether the model ended it, rather than the longest length."""


def draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Draw a token per row by its softmax: the first whose cumulative probability is above `uniform`.

    The sums are in float64, and a token of probability 0 is never drawn.

    Args:
        logits: unnormalised log probabilities.
        uniform: a number from 0 to 1, without 1, per row, in float64.
    """
    at_once = max(1, _DRAWN_AT_ONCE // logits.shape[1])
    return torch.cat(list(map(_draw, logits.split(at_once), uniform.split(at_once))))


def _draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    sums = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    return torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]


def sample(
    lm: LanguageModel,
    count: int,
    longest: int,
    seed: tuple[int, int],
    between: Callable[[], None] = lambda: None,
) -> list[Sampled]:
    """Sample documents from BOS alone.

    Args:
        lm: the model.
        count: documents.
        longest: most tokens of a document, BOS included; at most the model's context counts.
        seed: seed of the text, and number of the block.
        between: called between tokens, to obey a stop.

    Raises:
        SaeSweepError: if the model has no BOS, or keeps no keys and values between tokens.
    """
    if not lm.tokenizer.has_bos:
        raise SaeSweepError(
            f"the tokenizer of {lm.name} has no BOS token, from which text would be sampled: "
            "choose another model, or other text than dataset=faithful"
        )
    steps = min(longest, lm.n_ctx) - 1
    generator = torch.Generator().manual_seed((seed[0] << 31) + seed[1])
    at = torch.device("cpu") if lm.device.type == "mps" else lm.device  # mps has no float64
    uniform = torch.rand(count, steps, generator=generator, dtype=torch.float64).to(at)
    drawn = torch.full((count, steps), lm.tokenizer.eot_id, device=at)
    rows = torch.arange(count, device=at)
    latest, cache = torch.full((count, 1), lm.tokenizer.bos_id), None
    for step in range(steps):
        between()
        logits, cache = lm.next_logits(latest, cache)
        drawn[rows, step] = draw(logits.to(at), uniform[rows, step])
        going = (drawn[rows, : step + 1] != lm.tokenizer.eot_id).all(1)
        if not going.any():
            break
        if going.double().mean() < _COMPACT_BELOW:
            rows = rows[going]
            cache.batch_select_indices(going.nonzero()[:, 0].to(lm.device))
        latest = drawn[rows, step : step + 1]
    return [_until(row, lm.tokenizer.eot_id) for row in drawn.tolist()]


def _until(tokens: list[int], end: int) -> Sampled:
    """The tokens before the first `end`; what was drawn after it means nothing."""
    return Sampled(tokens[: tokens.index(end)], True) if end in tokens else Sampled(tokens, False)


def check_cache(lm: LanguageModel, tokens: Int[Tensor, "b s"]) -> None:
    """Raise SaeSweepError unless the model's cache gives the probabilities of whole passes.

    Args:
        lm: the model.
        tokens: sequences that it is tried on; BOS opens them.
    """
    cache = None
    for step in range(tokens.shape[1] - 1):
        logits, cache = lm.next_logits(tokens[:, step : step + 1], cache)
        found = torch.log_softmax(logits, -1).gather(1, tokens[:, step + 1 : step + 2].to(lm.device))
        exact = -lm.losses(tokens[:, : step + 2])[:, -1:]
        off = (found - exact).abs().max().item()
        if not off <= CACHE_TOLERANCE:
            raise SaeSweepError(
                f"{lm.name}: its cache of keys and values changes the probability of a token by {off:.1e} "
                "nats: text sampled with it would not be the model's"
            )


def is_sampled(dataset: FaithfulDataset, cache: Path) -> bool:
    """Whether the text of a config is in the cache, whole, and of the model as it is now."""
    files = FaithfulFiles(dataset, cache)
    try:
        manifest = files.read_manifest()
        if manifest is None:
            return False
        for number, known in enumerate(manifest.blocks):
            files.read_block(number, known)
    except SaeSweepError as error:
        log.warning("%s", error)
        return False
    return manifest.weights == weights_fingerprint(dataset.model)


def sample_text(dataset: FaithfulDataset, cache: Path, device: str) -> Manifest:
    """Sample the text of a config into the cache, from the first block that it lacks.

    One process samples a text while others wait. Stopped, it goes on at the next block.

    Args:
        dataset: what to sample.
        cache: folder of the cache.
        device: auto, cpu, cuda or mps.

    Raises:
        SaeSweepError: if the model cannot sample text, or has no new text.
    """
    files = FaithfulFiles(dataset, cache)
    with lock_folder(files.folder):
        if is_sampled(dataset, cache) and (manifest := files.read_manifest()):
            return manifest
        files.unfinish()
        remove_partials(files.folder)
        lm = load_language_model(dataset.model, pick_device(device))
        return _Sampler(dataset, files, lm, weights_fingerprint(dataset.model)).run()


class _Sampler:
    """Samples one text."""

    def __init__(
        self, dataset: FaithfulDataset, files: FaithfulFiles, lm: LanguageModel, weights: str
    ) -> None:
        self._dataset, self._files, self._lm, self._weights = dataset, files, lm, weights
        self._seen: set[int] = set()
        """Numbers of the texts of all blocks so far."""
        self._blocks: list[str] = []
        self._totals: Counter[str] = Counter()
        self._sampled = 0
        """Tokens that this command sampled."""

    def run(self) -> Manifest:
        """Take the blocks that earlier commands finished, and sample those that are missing."""
        began = time.perf_counter()
        while not self._is_enough and (block := self._read()) is not None:
            self._keep(block)
        progress = Progress(f"dataset={self._dataset.name}", self._dataset.tokens, self._totals["tokens"])
        try:
            while not self._is_enough:
                raise_if_requested()
                self._keep(self._read() or self._sample(len(self._blocks)))
                progress.show(min(self._totals["tokens"], self._dataset.tokens), {})
        finally:
            progress.close()
        manifest = self._manifest(time.perf_counter() - began)
        self._files.write_manifest(manifest)
        return manifest

    @property
    def _is_enough(self) -> bool:
        return self._totals["tokens"] >= self._dataset.tokens

    def _keep(self, block: Block) -> None:
        self._blocks.append(block.digest)
        self._seen.update(map(text_number, block.documents))
        self._totals["documents"] += len(block.documents)
        for name in ("tokens", "empty", "repeated", "ended", "same_tokens"):
            self._totals[name] += getattr(block, name)

    def _read(self) -> Block | None:
        """The next block if an earlier command finished it; None if it is damaged, or of another text."""
        try:
            block = self._files.read_block(len(self._blocks))
        except SaeSweepError as error:
            log.warning("%s", error)
            return None
        if block is None or block.weights != self._weights:
            return None
        return block if self._seen.isdisjoint(map(text_number, block.documents)) else None

    def _sample(self, number: int) -> Block:
        wanted, seed = self._dataset, (self._dataset.seed, number)
        found = sample(self._lm, wanted.block, wanted.longest, seed, raise_if_requested)
        if number == 0:
            self._check_cache(found)
        block = self._block(found)
        if not block.documents:
            raise SaeSweepError(
                f"dataset={wanted.name}: {self._lm.name} has no new text: of the {wanted.block} documents of "
                f"block {number} it ended {block.empty} at once, and {block.repeated} were there before; "
                "choose another model, or fewer dataset.tokens"
            )
        self._files.write_block(number, block)
        self._sampled += block.sampled
        return block

    def _check_cache(self, found: list[Sampled]) -> None:
        longest = max(found, key=lambda one: len(one.tokens)).tokens[:16]
        if longest:
            check_cache(self._lm, torch.tensor([[self._lm.tokenizer.bos_id, *longest]]))

    def _block(self, found: list[Sampled]) -> Block:
        tokenizer = self._lm.tokenizer
        texts = tokenizer.decode_batch([one.tokens for one in found])
        kept: dict[str, Sampled] = {}
        for text, one in zip(texts, found, strict=True):
            if text.strip() and text_number(text) not in self._seen:
                kept.setdefault(text, one)
        again = tokenizer.encode_batch(list(kept))
        empty = sum(not text.strip() for text in texts)
        return Block(
            weights=self._weights,
            documents=list(kept),
            tokens=sum(len(one.tokens) for one in kept.values()),
            sampled=sum(len(one.tokens) for one in found),
            empty=empty,
            repeated=len(found) - empty - len(kept),
            ended=sum(one.ended for one in found),
            same_tokens=sum(ids == one.tokens for ids, one in zip(again, kept.values(), strict=True)),
        )

    def _manifest(self, seconds: float) -> Manifest:
        totals, dataset = self._totals, self._dataset
        return Manifest(
            weights=self._weights,
            blocks=self._blocks,
            documents=totals["documents"],
            tokens=totals["tokens"],
            provenance={
                "model": dataset.path,
                "revision": dataset.model.hub_revision,
                "seed": dataset.seed,
                "block": dataset.block,
                "longest": min(dataset.longest, self._lm.n_ctx),
                "sampled_documents": len(self._blocks) * dataset.block,
                **{name: totals[name] for name in ("empty", "repeated", "ended", "same_tokens")},
                "tokens_per_second": self._sampled / seconds if self._sampled else None,
                "device": device_kind(self._lm.device),
                "attention": self._lm.attention,
                "host": platform.node(),
                "versions": {name: version(name) for name in ("torch", "transformers", "transformer_lens")},
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )
