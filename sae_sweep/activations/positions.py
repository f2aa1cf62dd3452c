"""Changes of a language model's learned positional embeddings, without touching its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_sweep.config import ConfigError, SaeSweepError

KINDS = ("zero", "shuffle")

_REMEDY = "they cannot be changed; take analysis.positions=none"

_INSTEAD = {"rotary": "rotary, RoPE", "alibi": "biases of its attention, ALiBi", "none": "none"}
"""What a model has instead of learned positional embeddings, by TransformerLens's name for it."""


@dataclass(frozen=True)
class PositionChange:
    """What happens to the positional embedding of each token."""

    kind: str
    """zero: it is 0. shuffle: it is that of another position, by a permutation."""
    per_sequence: bool = False
    """Whether each sequence has a permutation of its own, made from its tokens and the seed (the study)."""
    move_first: bool = False
    """Whether the first position is zeroed or moved, too (the study)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError([f"positions={self.kind}: choose from {', '.join(KINDS)}"])

    def apply(self, embedded: Float[Tensor, "b_or_1 s d"], tokens: Int[Tensor, "b s"]) -> Tensor:
        """The changed embeddings of a batch, [b, s, d]."""
        if self.kind == "zero":
            changed = torch.zeros_like(embedded)
            if not self.move_first:
                changed[:, 0] = embedded[:, 0]
            return changed
        order = self._permutations(tokens).to(embedded.device)
        size = max(len(order), len(embedded))
        order = order[..., None].expand(size, -1, embedded.shape[-1])
        return embedded.expand(size, -1, -1).gather(1, order)

    def _permutations(self, tokens: Tensor) -> Int[Tensor, "b_or_1 s"]:
        if not self.per_sequence:
            return self._permutation(tokens.shape[1], self.seed)[None]
        rows = tokens.cpu().to(torch.int64).numpy()
        seeds = (xxhash.xxh64_intdigest(row.tobytes(), seed=self.seed) >> 1 for row in rows)
        return torch.stack([self._permutation(tokens.shape[1], seed) for seed in seeds])

    def _permutation(self, length: int, seed: int) -> Int[Tensor, " s"]:
        moved = torch.randperm(length - (not self.move_first), generator=torch.Generator().manual_seed(seed))
        return moved if self.move_first else nn.functional.pad(moved + 1, (1, 0))


def learned_positions(network: nn.Module, name: str | None) -> nn.Module | None:
    """The module that looks up learned positional embeddings; None if the model has none.

    Args:
        network: the model.
        name: of the submodule that TransformerBridge takes for the positional embedding, if any.
    """
    module = None if name is None else network.get_submodule(name)
    looked_up = getattr(module, "original_component", module)
    learned = isinstance(looked_up, nn.Embedding) and "Sinusoidal" not in type(looked_up).__name__
    return module if learned else None


def other_positions(kind: str) -> str:
    """Say what a model has that learned no positional embeddings, from TransformerLens's name for it."""
    return _INSTEAD.get(kind, "fixed, or of a kind that is not known here")


@contextmanager
def changed(network: nn.Module, module: nn.Module, change: PositionChange) -> Iterator[None]:
    """Change the positional embeddings in every pass of `network` within the block.

    Raises:
        SaeSweepError: in a pass that does not look them up once, as one row per token.
    """
    reading: list[Tensor] = []
    """Tokens of the pass, until their positions are looked up."""

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_unchanged()
        reading.append(args[0] if args else kwargs["input_ids"])

    def refuse_unchanged() -> None:
        if reading:
            raise SaeSweepError(f"a pass looks up no positional embeddings: {_REMEDY}")

    def look_up(_: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        del args
        if not reading:
            raise SaeSweepError(f"a pass looks up positional embeddings twice: {_REMEDY}")
        tokens = reading.pop()
        if embedded.ndim != 3 or embedded.shape[1] != tokens.shape[1]:
            raise SaeSweepError(
                f"positional embeddings of shape {list(embedded.shape)} for tokens of shape "
                f"{list(tokens.shape)}: {_REMEDY}"
            )
        return change.apply(embedded, tokens)

    handles = [
        network.register_forward_pre_hook(begin, with_kwargs=True),
        module.register_forward_hook(look_up),
    ]
    try:
        yield
        refuse_unchanged()
    finally:
        for handle in handles:
            handle.remove()
