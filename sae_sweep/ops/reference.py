"""Reference kernels: the definitions in torch, slow, with which tests compare every other backend."""

import torch
from torch import Tensor

from sae_sweep.ops.csr import CSR, Transposed
from sae_sweep.ops.interface import AdamUpdate, Encoded, Kernels


class ReferenceKernels(Kernels):
    """Any device, any floating dtype."""

    name = "reference"

    def _normalise(self, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.std(dim=-1, keepdim=True) + eps)

    def _encode_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, dead_candidates: Tensor | None
    ) -> Encoded:
        del dead_candidates
        columns, values = self._topk(_dense(x, W, b), k)
        # values that are not above 0 become zeros at column 0, after the others
        kept = values > 0
        order = (~kept).sort(dim=-1, stable=True).indices
        columns = torch.where(kept, columns, 0).gather(-1, order)
        values = torch.where(kept, values, 0).gather(-1, order)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Encoded(CSR(offsets, columns.flatten(), len(W), from_kernel=True), values.flatten())

    def _encode_above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        max_nnz: int,
        dead_candidates: Tensor | None,
    ) -> Encoded | None:
        del dead_candidates
        z = _dense(x, W, b)
        mask = z > floors
        counts = mask.sum(dim=-1)
        if int(counts.sum()) > max_nnz:
            return None
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Encoded(CSR(offsets, mask.nonzero()[:, 1].int(), len(W), from_kernel=True), z[mask])

    def _topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        ranked = _nan_as_infinity(z).sort(dim=-1, descending=True, stable=True)
        columns, order = ranked.indices[:, :k].sort(dim=-1)
        return columns.int(), ranked.values[:, :k].gather(-1, order)

    def _transpose(self, csr: CSR) -> Transposed:
        columns, permutation = csr.indices.long().sort(stable=True)
        counts = torch.bincount(columns, minlength=csr.columns)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Transposed(
            CSR(offsets, csr.row_indices[permutation].int(), csr.rows, from_kernel=True), permutation
        )

    def _spmm(self, csr: CSR, values: Tensor, dense: Tensor) -> Tensor:
        out = dense.new_zeros(csr.rows, dense.shape[1])
        return out.index_add_(0, csr.row_indices, values.unsqueeze(-1) * dense[csr.indices.long()])

    def _sddmm(self, csr: CSR, left: Tensor, right: Tensor) -> Tensor:
        return (left[csr.row_indices] * right[csr.indices.long()]).sum(dim=-1)

    def _adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        mean, square = moments
        (beta1, beta2), step = update.betas, update.step
        if update.unit_rows == "before":
            weights.div_(weights.norm(dim=-1, keepdim=True))
        if update.gradient_scale is not None:
            gradient = gradient * update.gradient_scale
        if update.tangent:
            gradient = gradient - (gradient * weights).sum(dim=-1, keepdim=True) * weights
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (1 - beta2**step) ** 0.5
        weights.addcdiv_(mean, square.sqrt() / root + update.eps, value=-update.lr / (1 - beta1**step))
        if update.unit_rows == "after":
            weights.div_(weights.norm(dim=-1, keepdim=True))


def _dense(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    z = x @ W.t()
    return _nan_as_infinity(z if b is None else z + b)


def _nan_as_infinity(z: Tensor) -> Tensor:
    return torch.where(z.isnan(), torch.inf, z)
