"""Which next tokens each feature promotes and suppresses directly, through the unembedding alone."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.matching import unit_rows

_LOGITS_AT_ONCE = 2**26
"""Features are taken in blocks of at most so many logits: 256 MB."""


class Unembedding(Protocol):
    """The map from the residual stream to the logits, with the final norm folded in."""

    @property
    def vocabulary(self) -> int: ...

    def effects(self, directions: Tensor) -> Tensor:
        """Change of each logit per unit of direction, centred over the vocabulary: [n, vocabulary]."""
        ...


class LogitEffects(NamedTuple):
    """The output tokens that a feature moves most, the largest effect first.

    An effect is the change of a token's logit per unit of activation, less the mean over the vocabulary, up
    to a positive factor per token of text: the scale of the input there, over the norm of the last residual.
    """

    promoted: Int[Tensor, "d_sae most"]
    """Token ids."""
    promoted_effects: Float[Tensor, "d_sae most"]
    suppressed: Int[Tensor, "d_sae most"]
    suppressed_effects: Float[Tensor, "d_sae most"]


@torch.no_grad()
def logit_effects(
    W_dec: Float[Tensor, "d_sae d_in"],
    unembedding: Unembedding,
    most: int,
    between: Callable[[], None] = lambda: None,
) -> LogitEffects:
    """Find the tokens that each feature promotes and suppresses most, `most` of each or the whole vocabulary.

    Args:
        W_dec: a row is a feature's direction.
        unembedding: of the language model whose residual stream the SAE reads.
        most: tokens per feature and side.
        between: called between blocks of features, to obey a stop.
    """
    most = min(most, unembedding.vocabulary)
    parts = []
    for block in W_dec.float().split(max(1, _LOGITS_AT_ONCE // unembedding.vocabulary)):
        between()
        effects = unembedding.effects(block)
        high, low = effects.topk(most), effects.topk(most, largest=False)
        parts.append((high.indices.cpu(), high.values.cpu(), low.indices.cpu(), low.values.cpu()))
    return LogitEffects(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def logit_norms(
    W_dec: Float[Tensor, "d_sae d_in"], unembedding: Unembedding, between: Callable[[], None] = lambda: None
) -> Float[Tensor, " d_sae"]:
    """Norm of the effects of each feature, of length 1, on all logits: how much it says of the next token."""
    parts = []
    for block in unit_rows(W_dec.float()).split(max(1, _LOGITS_AT_ONCE // unembedding.vocabulary)):
        between()
        parts.append(unembedding.effects(block).norm(dim=1).cpu())
    return torch.cat(parts)
