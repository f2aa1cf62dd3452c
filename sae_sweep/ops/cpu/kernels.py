"""The C++ kernels behind the interface of all backends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.cpu.binding import pointer
from sae_sweep.ops.cpu.library import compiled_kernels
from sae_sweep.ops.cpu.memory import MemoryPool, Scratch
from sae_sweep.ops.csr import CSR, Transposed
from sae_sweep.ops.interface import AdamUpdate, Encoded, Estimates, Kernels

_BLOCK_TOKENS = 480
"""Tokens per dense product, without a 16-bit screen."""
_MAX_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding to a dtype."""
_MIN_NORM = 1e-14
"""A smaller norm is unreliable: its squares are close to underflow."""
_UNIT_ROWS = {None: 0, "before": -1, "after": 1}


class _Search(NamedTuple):
    """An encoder search: for the k largest or, with k = 0, for at most `max_nnz` above the floors."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    k: int
    floors: Tensor | None
    max_nnz: int
    dead_candidates: Tensor | None


class CPUKernels(Kernels):
    """float32 on the CPU, with as many threads as torch uses. Several threads of Python may call at once."""

    name = "cpu"
    device_type = "cpu"
    dtype = torch.float32
    leaves_estimates = True

    def __init__(self, cache: Path, *, screen: str = "auto") -> None:
        """Compile the library into `cache`, or find it there.

        Args:
            cache: the cache folder.
            screen: number format of the encoder's first, approximate product: int16, bfloat16, float32, or
                auto (bfloat16 if this processor multiplies it natively, else int16 if it can, else float32).

        Raises:
            SaeSweepError: if the library cannot be compiled or loaded.
        """
        self._library = compiled_kernels(cache)
        self._panel: int = self._library.panel_features()
        self.screen = self._best_screen() if screen == "auto" else screen
        if self.screen == "int16" and not self.has_int16:
            raise SaeSweepError("this processor has no 16-bit screen")
        self._encode: Callable[[_Search], Encoded | None] = (
            self._encode_int16 if self.screen == "int16" else self._encode_from_dense
        )
        self._scratch = Scratch()
        self._results = MemoryPool()

    @property
    def has_int16(self) -> bool:
        """Whether this processor has the 16-bit screen."""
        return self._panel > 0

    def _best_screen(self) -> str:
        processor = torch.cpu.get_capabilities()
        if processor.get("amx_bf16") or processor.get("avx512_bf16"):
            return "bfloat16"
        return "int16" if self.has_int16 else "float32"

    def _normalise(self, x: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self._library.normalise_rows(pointer(x), *x.shape, eps, pointer(out))
        return out

    def _encode_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, dead_candidates: Tensor | None
    ) -> Encoded:
        # never None: exactly k per row
        return cast(Encoded, self._encode(_Search(x, W, b, k, None, len(x) * k, dead_candidates)))

    def _encode_above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        max_nnz: int,
        dead_candidates: Tensor | None,
    ) -> Encoded | None:
        return self._encode(_Search(x, W, b, 0, floors, max_nnz, dead_candidates))

    def _encode_int16(self, search: _Search) -> Encoded | None:
        x, W, b, k, floors, max_nnz, dead = search
        features, width = W.shape
        order, first_dead = self._order(features, dead)
        slots, stride = len(order), len(order) - first_dead
        pairs = self._scratch.empty("pairs", slots * ((width + 1) // 2), torch.int32)
        steps, norm_bounds = (self._scratch.empty(name, slots, torch.float32) for name in ("steps", "norms"))
        packed = pointer(pairs), pointer(steps), pointer(norm_bounds)
        self._library.pack(pointer(W), width, pointer(order), slots, *packed)
        estimates = self._scratch.empty("estimates", len(x) * stride, torch.float32)
        error_per_norm = torch.empty(len(x))
        with self._found() as found:
            self._library.encode_int16(
                *(pointer(x), len(x), pointer(W), pointer(b), features, width),
                *(*packed, pointer(order), slots, k, pointer(floors), max_nnz),
                *(first_dead, pointer(estimates), pointer(error_per_norm), byref(found)),
            )
            encoded = self._export(found, len(x), features)
        if encoded is None or dead is None:
            return encoded
        columns = torch.arange(len(dead), dtype=torch.int32)
        of_dead = norm_bounds[first_dead : first_dead + len(dead)].clone()
        values = estimates[: len(x) * stride].view(len(x), stride)
        return encoded._replace(estimates=Estimates(values, columns, error_per_norm, of_dead))

    def _order(self, features: int, dead_candidates: Tensor | None) -> tuple[Tensor, int]:
        """The features in slots of whole panels (-1: empty), and the slot of the first dead candidate."""
        every = torch.arange(features, dtype=torch.int32)
        if dead_candidates is None:
            groups = [every]
        else:
            others = torch.ones(features, dtype=torch.bool)
            others[dead_candidates] = False
            groups = [every[others], dead_candidates.int()]
        first, *rest = (
            torch.nn.functional.pad(group, (0, -len(group) % self._panel), value=-1) for group in groups
        )
        return torch.cat([first, *rest]), len(first)

    def _encode_from_dense(self, search: _Search) -> Encoded | None:
        x, W, b, k, floors, max_nnz, dead = search
        features, width = W.shape
        dtype = getattr(torch, self.screen)
        norm_bounds = _norm_bounds(W)
        narrow_x, narrow_W = x.to(dtype), W.to(dtype)
        # both factors and the sum are rounded to dtype; inner sums are float32
        relative_error = 1.05 * (3 * _MAX_ROUNDING[dtype] + width * _MAX_ROUNDING[torch.float32])
        dead = None if dead is None else dead.int()
        stride = 0 if dead is None else len(dead)
        estimates = self._scratch.empty("estimates", len(x) * stride, torch.float32)[: len(x) * stride]
        estimates, error_per_norm = estimates.view(len(x), stride), torch.empty(len(x))
        parts = []
        for first in range(0, len(x), _BLOCK_TOKENS):
            rows = x[first : first + _BLOCK_TOKENS]
            z = torch.mm(narrow_x[first : first + _BLOCK_TOKENS], narrow_W.t())
            with self._found() as found:
                self._library.encode_from_dense(
                    *(pointer(z), dtype is torch.bfloat16, relative_error, pointer(rows), len(rows)),
                    *(pointer(W), pointer(b), features, width, pointer(norm_bounds)),
                    *(k, pointer(floors), max_nnz, pointer(dead), stride),
                    *(pointer(estimates[first:]), pointer(error_per_norm[first:]), byref(found)),
                )
                part = self._export(found, len(rows), features)
            if part is None:
                return None
            parts.append(part)
        encoded = _concatenate(parts, features, x)
        if encoded.csr.nnz > max_nnz:
            return None
        if dead is None:
            return encoded
        columns = torch.arange(stride, dtype=torch.int32)
        return encoded._replace(estimates=Estimates(estimates, columns, error_per_norm, norm_bounds[dead]))

    def _encode_dead_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, estimates: Estimates | None
    ) -> Encoded:
        if estimates is None:
            return super()._encode_dead_topk(x, W, b, k, estimates)
        candidates = self._dead_candidates(estimates, b, k)
        exact = self._sddmm(candidates, x, W)
        if b is not None:
            exact += b[candidates.indices]
        columns, kept = torch.empty(len(x), k, dtype=torch.int32), torch.empty(len(x), k)
        self._library.topk_csr_rows(
            *(pointer(candidates.offsets), pointer(candidates.indices), pointer(exact), len(x), k),
            *(pointer(columns), pointer(kept)),
        )
        return Encoded(
            CSR(torch.arange(len(x) + 1) * k, columns.flatten(), len(W), from_kernel=True), kept.flatten()
        )

    def _dead_candidates(self, estimates: Estimates, b: Tensor | None, k: int) -> CSR:
        """Candidates for the k largest per row."""
        tokens, stride = estimates.values.shape
        count = len(estimates.columns)
        with self._found() as found:
            self._library.topk_candidates(
                *(pointer(estimates.values), stride, pointer(estimates.columns), pointer(b)),
                *(pointer(estimates.norm_bounds), count, pointer(estimates.error_per_norm), tokens, k),
                byref(found),
            )
            return cast(Encoded, self._export(found, tokens, count)).csr  # never None: without a maximum

    @contextmanager
    def _found(self) -> Iterator[c_void_p]:
        """Yield the place of a CSR that a search makes; it is freed at the end, also after an error."""
        found = c_void_p()
        try:
            yield found
        finally:
            self._library.csr_free(found)

    def _export(self, found: c_void_p, rows: int, columns: int) -> Encoded | None:
        """Copy a CSR out of the library; None if it exceeded its maximum."""
        nnz = self._library.csr_nnz(found)
        if nnz < 0:
            return None
        offsets = torch.empty(rows + 1, dtype=torch.int64)
        indices, values = torch.empty(nnz, dtype=torch.int32), torch.empty(nnz)
        self._library.csr_export(found, pointer(offsets), pointer(indices), pointer(values))
        return Encoded(CSR(offsets, indices, columns, from_kernel=True), values)

    def _topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        columns, values = torch.empty(len(z), k, dtype=torch.int32), torch.empty(len(z), k)
        self._library.topk_rows(pointer(z), *z.shape, k, pointer(columns), pointer(values))
        return columns, values

    def _transpose(self, csr: CSR) -> Transposed:
        offsets = torch.empty(csr.columns + 1, dtype=torch.int64)
        indices, permutation = torch.empty_like(csr.indices), torch.empty(csr.nnz, dtype=torch.int64)
        # each part counts all columns: that should be little work beside its non-zeros
        parts = max(1, min(torch.get_num_threads(), csr.nnz // (4 * csr.columns + 1)))
        counts = torch.empty(parts * csr.columns, dtype=torch.int64)
        self._library.transpose(
            *(pointer(csr.offsets), pointer(csr.indices), csr.rows, csr.columns, parts, pointer(counts)),
            *(pointer(offsets), pointer(indices), pointer(permutation)),
        )
        return Transposed(CSR(offsets, indices, csr.rows, from_kernel=True), permutation)

    def _spmm(self, csr: CSR, values: Tensor, dense: Tensor) -> Tensor:
        out = self._results.empty(csr.rows, dense.shape[1])
        self._library.spmm(
            *(pointer(csr.offsets), pointer(csr.indices), pointer(values), csr.rows, csr.columns),
            *(pointer(dense), dense.shape[1], self._product_buffer(csr, dense), pointer(out)),
        )
        return out

    def _sddmm(self, csr: CSR, left: Tensor, right: Tensor) -> Tensor:
        out = torch.empty(csr.nnz)
        self._library.sddmm(
            *(pointer(csr.offsets), pointer(csr.indices), csr.rows, csr.columns),
            *(pointer(left), pointer(right), left.shape[1], self._product_buffer(csr, right)),
            pointer(out),
        )
        return out

    def _product_buffer(self, csr: CSR, dense: Tensor) -> int | None:
        size = self._library.product_buffer_size(csr.nnz, csr.columns, dense.shape[1])
        return pointer(self._scratch.empty("slices", size, torch.float32)) if size else None

    def _adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        (beta1, beta2), step = update.betas, update.step
        scale = 1.0 if update.gradient_scale is None else float(update.gradient_scale)
        self._library.adam_rows(
            *map(pointer, (weights, gradient, *moments)),
            *(*weights.shape, beta1, beta2, update.lr / (1 - beta1**step), (1 - beta2**step) ** 0.5),
            *(update.eps, scale, update.tangent, _UNIT_ROWS[update.unit_rows]),
        )


def _norm_bounds(W: Tensor) -> Tensor:
    """Norm of each row; infinity if its squares may have underflowed."""
    norms = W.norm(dim=-1)
    return torch.where((norms < _MIN_NORM) & W.any(dim=-1), torch.inf, norms)


def _concatenate(parts: list[Encoded], features: int, x: Tensor) -> Encoded:
    if not parts:
        nothing = torch.zeros(1, dtype=torch.int64)
        return Encoded(
            CSR(nothing, torch.empty(0, dtype=torch.int32), features, from_kernel=True), x.new_empty(0)
        )
    counts = torch.cat([part.csr.offsets.diff() for part in parts])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.cat([part.csr.indices for part in parts])
    return Encoded(
        CSR(offsets, indices, features, from_kernel=True), torch.cat([part.values for part in parts])
    )
