"""The Triton kernels behind the interface of all backends."""

import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.ops.csr import CSR, Transposed
from sae_sweep.ops.interface import AdamUpdate, Encoded, Kernels
from sae_sweep.ops.triton import rows, selection, sparse

_BLOCK_TOKENS = 2048
"""Tokens per dense product: 100 MB at 12,288 features, in few launches."""
_CHUNK = 2048
"""Features that a program reads at once, if it need not hold all."""


class Narrow(NamedTuple):
    """A matrix rounded to fewer bits, as `rows.narrow` writes it."""

    rows: Float[Tensor, "rows d_in"]
    norms: Float[Tensor, " rows"]
    """Norms of the rows before rounding."""
    error_norms: Float[Tensor, " rows"]
    """Bounds of the norms of the rounding errors."""


class TritonKernels(Kernels):
    """float32 on a CUDA device."""

    name = "triton"
    dtype = torch.float32

    def __init__(self, device: str = "cuda") -> None:
        """Compile one kernel and run it on `device`, to see that it works.

        Raises:
            SaeSweepError: if it does not, for example because Triton finds no C compiler.
        """
        self.device_type = torch.device(device).type
        try:
            self.normalise(torch.ones(1, 2, device=device), 1.0)
        except (triton.TritonError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
            raise SaeSweepError(f"triton cannot compile for {device}: {first_line(error)}") from error

    def _normalise(self, x: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        rows.normalise[(len(x),)](x, out, x.shape[1], eps, **_row(x.shape[1]))
        return out

    def _encode_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, dead_candidates: Tensor | None
    ) -> Encoded:
        del dead_candidates
        features = len(W)
        weights = _narrow(W)
        indices, values = x.new_empty(len(x), k, dtype=torch.int32), x.new_empty(len(x), k)
        starts = torch.arange(min(len(x), _BLOCK_TOKENS), device=x.device) * features
        parts = (part.split(_BLOCK_TOKENS) for part in (x, indices, values))
        for tokens, *out in zip(*parts, strict=True):
            narrow = _narrow(tokens)
            z = _product(narrow, weights)
            candidates, counts = torch.empty_like(z, dtype=torch.int32), starts.new_empty(len(tokens))
            _screen(z, b, narrow, weights, counts, starts=starts, candidates=candidates, k=k)
            # the estimates are no longer needed: the exact values overwrite them
            _sddmm(starts, starts[: len(tokens)] + counts, candidates, tokens, W, b, z)
            _keep_largest(z, candidates, counts, out, k)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Encoded(CSR(offsets, indices.flatten(), features, from_kernel=True), values.flatten())

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
        csr = _candidates_above(x, W, b, floors, max_nnz)
        if csr is None:
            return None
        values = x.new_empty(csr.nnz)
        _sddmm(csr.offsets, csr.offsets[1:], csr.indices, x, W, b, values)
        values = values.nan_to_num(torch.inf, torch.inf, -torch.inf)  # as in `selection`
        mask = values > floors[csr.indices]
        kept = csr.keep(mask)
        return None if kept.nnz > max_nnz else Encoded(kept, values[mask])

    def _topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        out = z.new_empty(len(z), k, dtype=torch.int32), z.new_empty(len(z), k)
        _keep_largest(z, None, None, out, k)
        return out

    def _transpose(self, csr: CSR) -> Transposed:
        columns, permutation = csr.indices.sort(stable=True)
        # by search, because torch.bincount would wait for the device
        bounds = torch.arange(csr.columns + 1, dtype=columns.dtype, device=columns.device)
        offsets = torch.searchsorted(columns, bounds)
        return Transposed(
            CSR(offsets, csr.row_indices[permutation].int(), csr.rows, from_kernel=True), permutation
        )

    def _spmm(self, csr: CSR, values: Tensor, dense: Tensor) -> Tensor:
        width = dense.shape[1]
        out = dense.new_empty(csr.rows, width)
        sparse.spmm[(csr.rows,)](*(csr.offsets, csr.indices, values, dense, out, width), **_tile(width))
        return out

    def _sddmm(self, csr: CSR, left: Tensor, right: Tensor) -> Tensor:
        out = left.new_empty(csr.nnz)
        _sddmm(csr.offsets, csr.offsets[1:], csr.indices, left, right, None, out)
        return out

    def _adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        (beta1, beta2), step = update.betas, update.step
        count, width = weights.shape
        in_parts = not update.tangent and update.unit_rows is None
        shape = _row(min(width, 1024) if in_parts else width)
        rows.adam[(count, triton.cdiv(width, shape["BLOCK"]))](
            *(weights, gradient, *moments, width, update.lr / (1 - beta1**step)),
            *(1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, update.eps, update.gradient_scale),
            TANGENT=update.tangent,
            UNIT_BEFORE=update.unit_rows == "before",
            UNIT_AFTER=update.unit_rows == "after",
            **shape,
        )


def _candidates_above(x: Tensor, W: Tensor, b: Tensor | None, floors: Tensor, max_nnz: int) -> CSR | None:
    """All that may be above the floors; None if more than `max_nnz` certainly are."""
    weights = _narrow(W)
    offsets, indices = [torch.zeros(1, dtype=torch.int64, device=x.device)], []
    nnz = certain = 0
    for tokens in x.split(_BLOCK_TOKENS):
        narrow = _narrow(tokens)
        z = _product(narrow, weights)
        counts, certain_counts = torch.empty(2, len(tokens), dtype=torch.int64, device=x.device)
        _screen(z, b, narrow, weights, counts, floors=floors, certain=certain_counts)
        # waits for the device: only there is the number of candidates known, and so the memory to allocate
        candidate_count, certain_count = torch.stack([counts.sum(), certain_counts.sum()]).tolist()
        certain += certain_count
        if certain > max_nnz:
            return None
        ends = counts.cumsum(0)
        candidates = torch.empty(candidate_count, dtype=torch.int32, device=x.device)
        starts = ends - counts
        _screen(z, b, narrow, weights, counts, floors=floors, starts=starts, candidates=candidates)
        offsets.append(ends + nnz)
        indices.append(candidates)
        nnz += candidate_count
    return CSR(torch.cat(offsets), torch.cat(indices), len(W), from_kernel=True)


def _narrow(x: Tensor) -> Narrow:
    out = torch.empty_like(x, dtype=_screen_dtype(x.device))
    norms, error_norms = x.new_empty(2, len(x))
    rows.narrow[(len(x),)](x, out, norms, error_norms, x.shape[1], **_row(x.shape[1]))
    return Narrow(out, norms, error_norms)


def _screen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it natively."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float32
    return torch.bfloat16


def _product(x: Narrow, W: Narrow) -> Tensor:
    """x W^T in float32."""
    if x.rows.is_cuda and x.rows.dtype is torch.bfloat16:
        return torch.mm(x.rows, W.rows.t(), out_dtype=torch.float32)
    return x.rows.float() @ W.rows.float().t()


def _screen(
    z: Tensor,
    b: Tensor | None,
    x: Narrow,
    W: Narrow,
    counts: Tensor,
    *,
    floors: Tensor | None = None,
    starts: Tensor | None = None,
    candidates: Tensor | None = None,
    certain: Tensor | None = None,
    k: int = 0,
) -> None:
    features = z.shape[1]
    shape = _row(features)
    selection.screen[(len(z),)](
        *(z, b, x.norms, x.error_norms, W.norms, W.error_norms),
        *(floors, starts, candidates, counts, certain, features, k),
        **shape,
        CHUNK=min(shape["BLOCK"], _CHUNK),
        # two programs of 16 warps per multiprocessor, as long as a row fits their registers
        maxnreg=64 if shape["BLOCK"] <= 16384 else None,
    )


def _keep_largest(
    values: Tensor, columns: Tensor | None, counts: Tensor | None, out: Sequence[Tensor], k: int
) -> None:
    """Select from full rows or, with `counts`, from the first values of each, seldom more than 4k."""
    width = values.shape[1]
    few = triton.next_power_of_2(4 * k)
    sizes = [width] if counts is None or few >= width else [few, width]
    done = -1
    for size in sizes:
        shape = _row(size)
        selection.keep_largest[(len(values),)](
            *(values, columns, counts, *out, width, k),
            POSITIVE=counts is not None,
            MORE_THAN=done,
            CHUNK=min(shape["BLOCK"], _CHUNK),
            **shape,
        )
        done = size


def _sddmm(
    starts: Tensor, ends: Tensor, indices: Tensor, x: Tensor, W: Tensor, b: Tensor | None, out: Tensor
) -> None:
    width = x.shape[1]
    sparse.sddmm[(len(x),)](starts, ends, indices, x, W, b, out, width, **_tile(width))


def _row(width: int) -> dict[str, Any]:
    """Launch options of a program that holds a whole row: 8 numbers per thread, more from 16 warps on."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def _tile(width: int) -> dict[str, Any]:
    """Launch options of a program that reads several rows at once: 8,192 numbers, from at most 32 rows."""
    block = triton.next_power_of_2(width)
    return {"NONZEROS": min(max(8192 // block, 1), 32), "BLOCK": block, "num_warps": max(block // 2048, 4)}
