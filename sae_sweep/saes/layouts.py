"""Latents of a batch, all d_sae of each token or the active ones alone: one interface for both.

What is done to latents one by one (a ReLU, a jump, a mask) is the same in both forms; what needs to know
where they are is here.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep import ops


class Form(Protocol):
    """How the latents of `tokens` tokens are laid out."""

    @property
    def tokens(self) -> int: ...

    def spread(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        """The number of each latent's feature, ready to be compared with the latents."""
        ...

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        """Which features are above 0 for any token."""
        ...


class Dense(NamedTuple):
    """Latents are [tokens, d_sae]."""

    tokens: int

    def spread(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        return by_feature

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        return (f > 0).any(dim=0)


class Entries(NamedTuple):
    """Latents are the [entries] of a code."""

    sparse: ops.Sparse

    @property
    def tokens(self) -> int:
        return self.sparse.code.rows

    def spread(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        return ops.spread(self.sparse, by_feature)

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        code = self.sparse.code
        fired = torch.zeros(code.columns, dtype=torch.bool, device=f.device)
        return fired.index_fill_(0, code.indices[f > 0].long(), True)
