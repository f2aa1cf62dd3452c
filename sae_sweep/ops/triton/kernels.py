"""The Triton kernels behind the interface of all backends."""

import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.interface import AdamUpdate, Code, Found, Kernels, Transposed
from sae_sweep.ops.triton import rows, selection, sparse

_TOKENS = 2048
"""Tokens whose dense products are held at a time: 100 MB at 12,288 features, in few launches."""
_CHUNK = 2048
"""Features that a program looks at together, where it need not hold all."""


class Narrow(NamedTuple):
    """A matrix in fewer bits."""

    rows: Float[Tensor, "rows d_in"]
    norms: Float[Tensor, " rows"]
    """Of the rows as they were."""
    errors: Float[Tensor, " rows"]
    """What bounds the error of a product, see `rows.narrow`."""


class TritonKernels(Kernels):
    """float32 on a CUDA device."""

    name = "triton"

    def __init__(self, device: str = "cuda") -> None:
        """Compile one kernel and run it on `device`, to see that this can be done.

        Raises:
            SaeSweepError: if it cannot: Triton needs a C compiler.
        """
        try:
            self.normalise(torch.ones(1, 2, device=device), 1.0)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            reason = str(error).partition("\n")[0]
            raise SaeSweepError(f"triton cannot compile for {device}: {reason}") from error

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        rows.normalise[(len(x),)](x, out, x.shape[1], eps, **_row(x.shape[1]))
        return out

    def largest(self, x: Tensor, W: Tensor, b: Tensor | None, k: int, watched: Tensor | None = None) -> Found:
        del watched
        _check(x, W, b)
        features = len(W)
        weights = _narrow(W)
        indices, values = x.new_empty(len(x), k, dtype=torch.int32), x.new_empty(len(x), k)
        starts = torch.arange(min(len(x), _TOKENS), device=x.device) * features
        parts = (part.split(_TOKENS) for part in (x, indices, values))
        for tokens, *out in zip(*parts, strict=True):
            narrow = _narrow(tokens)
            z = _product(narrow, weights)
            candidates, counts = torch.empty_like(z, dtype=torch.int32), starts.new_empty(len(tokens))
            _screen(z, b, narrow, weights, counts, starts=starts, candidates=candidates, k=k)
            # the estimates have been used: their place is the values' now
            _products(starts, starts[: len(tokens)] + counts, candidates, tokens, W, b, z)
            _keep_largest(z, candidates, counts, out, k)
        offsets = torch.arange(len(x) + 1, device=x.device) * k
        return Found(Code(offsets, indices.flatten(), features), values.flatten())

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
        _check(x, W, b, floors)
        code = _candidates_above(x, W, b, floors, most)
        if code is None:
            return None
        values = x.new_empty(len(code.indices))
        _products(code.offsets, code.offsets[1:], code.indices, x, W, b, values)
        values = values.nan_to_num(torch.inf, torch.inf, -torch.inf)  # as `selection` has it
        mask = values > floors[code.indices]
        kept = code.keep(mask)
        return None if len(kept.indices) > most else Found(kept, values[mask])

    def largest_of(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        out = z.new_empty(len(z), k, dtype=torch.int32), z.new_empty(len(z), k)
        _keep_largest(z.contiguous(), None, None, out, k)
        return out

    def transpose(self, code: Code) -> Transposed:
        columns, places = code.indices.sort(stable=True)
        # found by search: torch.bincount would wait for the device
        bounds = torch.arange(code.columns + 1, dtype=columns.dtype, device=columns.device)
        offsets = torch.searchsorted(columns, bounds)
        return Transposed(Code(offsets, code.row_of_entry[places].int(), code.rows), places)

    def combine(self, code: Code, values: Tensor, dense: Tensor) -> Tensor:
        _check(values, dense)
        width = dense.shape[1]
        out = dense.new_empty(code.rows, width)
        sparse.combine[(code.rows,)](*(code.offsets, code.indices, values, dense, out, width), **_tile(width))
        return out

    def products(self, code: Code, left: Tensor, right: Tensor) -> Tensor:
        _check(left, right)
        out = left.new_empty(len(code.indices))
        _products(code.offsets, code.offsets[1:], code.indices, left, right, None, out)
        return out

    def adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        _check(weights, gradient, *moments)
        (beta1, beta2), step = update.betas, update.step
        count, width = weights.shape
        in_parts = not update.tangent and update.unit is None
        shape = _row(min(width, 1024) if in_parts else width)
        rows.adam[(count, triton.cdiv(width, shape["BLOCK"]))](
            *(weights, gradient, *moments, width, update.rate / (1 - beta1**step)),
            *(1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, update.eps, update.shrink),
            TANGENT=update.tangent,
            UNIT_BEFORE=update.unit == "before",
            UNIT_AFTER=update.unit == "after",
            **shape,
        )


def _check(*tensors: Tensor | None) -> None:
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)


def _candidates_above(x: Tensor, W: Tensor, b: Tensor | None, floors: Tensor, most: int) -> Code | None:
    """The code of all that may be above the floors; None if more than `most` surely are."""
    weights = _narrow(W)
    offsets, indices = [torch.zeros(1, dtype=torch.int64, device=x.device)], []
    entries = certain = 0
    for tokens in x.split(_TOKENS):
        narrow = _narrow(tokens)
        z = _product(narrow, weights)
        counts, sure = torch.empty(2, len(tokens), dtype=torch.int64, device=x.device)
        _screen(z, b, narrow, weights, counts, floors=floors, certain=sure)
        # waits for the device: how much memory to ask for is known only there
        found, surely = torch.stack([counts.sum(), sure.sum()]).tolist()
        certain += surely
        if certain > most:
            return None
        ends = counts.cumsum(0)
        candidates = torch.empty(found, dtype=torch.int32, device=x.device)
        starts = ends - counts
        _screen(z, b, narrow, weights, counts, floors=floors, starts=starts, candidates=candidates)
        offsets.append(ends + entries)
        indices.append(candidates)
        entries += found
    return Code(torch.cat(offsets), torch.cat(indices), len(W))


def _narrow(x: Tensor) -> Narrow:
    out = torch.empty_like(x, dtype=_screen_dtype(x.device))
    norms, errors = x.new_empty(2, len(x))
    rows.narrow[(len(x),)](x, out, norms, errors, x.shape[1], **_row(x.shape[1]))
    return Narrow(out, norms, errors)


def _screen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if this device multiplies it by itself."""
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
        *(z, b, x.norms, x.errors, W.norms, W.errors),
        *(floors, starts, candidates, counts, certain, features, k),
        **shape,
        CHUNK=min(shape["BLOCK"], _CHUNK),
        # two programs of 16 warps a multiprocessor, as long as a row has room in them
        maxnreg=64 if shape["BLOCK"] <= 16384 else None,
    )


def _keep_largest(
    values: Tensor, columns: Tensor | None, counts: Tensor | None, out: Sequence[Tensor], k: int
) -> None:
    """Of full rows, or of the first `counts` of each, which are above 0: seldom more than 4k."""
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


def _products(
    starts: Tensor, ends: Tensor, indices: Tensor, x: Tensor, W: Tensor, b: Tensor | None, out: Tensor
) -> None:
    width = x.shape[1]
    sparse.products[(len(x),)](starts, ends, indices, x, W, b, out, width, **_tile(width))


def _row(width: int) -> dict[str, Any]:
    """Of a program that holds a whole row: 8 numbers a thread, and more once that takes 16 warps."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def _tile(width: int) -> dict[str, Any]:
    """Of a program that reads rows of `width` a few at a time: 8,192 numbers, of 32 rows at most."""
    block = triton.next_power_of_2(width)
    return {"ENTRIES": min(max(8192 // block, 1), 32), "BLOCK": block, "num_warps": max(block // 2048, 4)}
