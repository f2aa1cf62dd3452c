"""The kernels in plain torch, dense where that is simplest: what every other backend is held against."""

import torch
from torch import Tensor

from sae_sweep.ops.interface import AdamUpdate, Code, Found, Kernels, Transposed


class PlainKernels(Kernels):
    """Any device, any floating dtype; slow."""

    name = "plain"

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.std(dim=-1, keepdim=True) + eps)

    def largest(self, x: Tensor, W: Tensor, b: Tensor | None, k: int, watched: Tensor | None = None) -> Found:
        del watched
        z = _dense(x, W, b)
        columns, values = self.largest_of(z, k)
        # what is not above 0 gives way to zeros at feature 0, behind the others
        kept = values > 0
        order = (~kept).sort(dim=-1, stable=True).indices
        columns = torch.where(kept, columns, 0).gather(-1, order)
        values = torch.where(kept, values, 0).gather(-1, order)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Found(Code(offsets, columns.flatten(), len(W)), values.flatten())

    def above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        most: int,
        watched: Tensor | None = None,
    ) -> Found | None:
        del watched
        z = _dense(x, W, b)
        mask = z > floors
        counts = mask.sum(dim=-1)
        if int(counts.sum()) > most:
            return None
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Found(Code(offsets, mask.nonzero()[:, 1].int(), len(W)), z[mask])

    def largest_of(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        top = z.topk(k, dim=-1, sorted=False)
        columns, order = top.indices.sort(dim=-1)
        return columns.int(), top.values.gather(-1, order)

    def transpose(self, code: Code) -> Transposed:
        columns, places = code.indices.long().sort(stable=True)
        counts = torch.bincount(columns, minlength=code.columns)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Transposed(Code(offsets, code.row_of_entry[places].int(), code.rows), places)

    def combine(self, code: Code, values: Tensor, dense: Tensor) -> Tensor:
        out = dense.new_zeros(code.rows, dense.shape[1])
        return out.index_add_(0, code.row_of_entry, values.unsqueeze(-1) * dense[code.indices.long()])

    def products(self, code: Code, left: Tensor, right: Tensor) -> Tensor:
        return (left[code.row_of_entry] * right[code.indices.long()]).sum(dim=-1)

    def adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        mean, square = moments
        (beta1, beta2), step = update.betas, update.step
        if update.unit == "before":
            weights.div_(weights.norm(dim=-1, keepdim=True))
        if update.shrink is not None:
            gradient = gradient * update.shrink
        if update.tangent:
            gradient = gradient - (gradient * weights).sum(dim=-1, keepdim=True) * weights
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (1 - beta2**step) ** 0.5
        weights.addcdiv_(mean, square.sqrt() / root + update.eps, value=-update.rate / (1 - beta1**step))
        if update.unit == "after":
            weights.div_(weights.norm(dim=-1, keepdim=True))


def _dense(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    z = x @ W.t()
    return z if b is None else z + b
