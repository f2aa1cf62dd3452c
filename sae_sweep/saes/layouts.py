"""Two layouts of a batch's latents, all d_sae of each token or only the active ones, with one interface.

Element-wise operations on latents (a ReLU, a jump, a mask) are the same in both. Those that depend on a
latent's position are here.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweep import ops


class Layout(Protocol):
    """The layout of the latents of `tokens` tokens."""

    @property
    def tokens(self) -> int: ...

    def broadcast(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        """Expand one number per feature so that it lines up with the latents."""
        ...

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        """Which features are above 0 for any token."""
        ...


class DenseLayout(NamedTuple):
    """Latents are [tokens, d_sae]."""

    tokens: int

    def broadcast(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        return by_feature

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        return (f > 0).any(dim=0)


class SparseLayout(NamedTuple):
    """Latents are the [nnz] values of a sparse matrix over tokens and features."""

    pattern: ops.SparsePattern

    @property
    def tokens(self) -> int:
        return self.pattern.csr.rows

    def broadcast(self, by_feature: Float[Tensor, " d_sae"]) -> Tensor:
        return ops.gather_columns(self.pattern, by_feature)

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        csr = self.pattern.csr
        fired = torch.zeros(csr.columns, dtype=torch.bool, device=f.device)
        return fired.index_fill_(0, csr.indices[f > 0].long(), True)
