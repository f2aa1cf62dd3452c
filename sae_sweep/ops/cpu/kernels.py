"""The C++ kernels behind the interface of all backends."""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.cpu.build import build
from sae_sweep.ops.cpu.memory import MemoryPool
from sae_sweep.ops.csr import CSR, Transposed
from sae_sweep.ops.interface import AdamUpdate, Encoded, Estimates, Kernels

_BLOCK_TOKENS = 480
"""Tokens per dense product, without a 16-bit screen."""
_MAX_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding to a dtype."""
_MIN_NORM = 1e-14
"""A smaller norm is unreliable: its squares are close to underflow."""
_UNIT_ROWS = {None: 0, "before": -1, "after": 1}

_SIGNATURES = {
    "panel_features": (c_int64, ""),
    "pack": (None, "pipippp"),
    "encode_int16": (c_void_p, "pippiippppiipiipp"),
    "encode_from_dense": (c_void_p, "pbfpippiipipipipp"),
    "topk_candidates": (c_void_p, "pipppipii"),
    "topk_csr_rows": (None, "pppiipp"),
    "csr_nnz": (c_int64, "p"),
    "csr_export": (None, "pppp"),
    "topk_rows": (None, "piiipp"),
    "product_buffer_size": (c_int64, "iii"),
    "spmm": (None, "pppiipipp"),
    "sddmm": (None, "ppiippipp"),
    "transpose": (None, "ppiiipppp"),
    "adam_rows": (None, "ppppiiffffffbn"),
    "normalise_rows": (None, "piifp"),
}
"""Result and arguments of each C function (p pointer, i int64, n int, f float, b bool)."""
_INT16_FUNCTIONS = ("pack", "encode_int16")
"""Missing from the library if the processor has no 16-bit screen."""
_DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.int64)
_TYPES = {"p": c_void_p, "i": c_int64, "n": c_int, "f": c_float, "b": c_bool}


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
    """float32 on the CPU, with as many threads as torch uses."""

    name = "cpu"
    leaves_estimates = True

    def __init__(self, cache: Path, *, screen: str = "auto") -> None:
        """Compile the library into `cache`, or find it there.

        Args:
            cache: the cache folder.
            screen: number format of the encoder's first, approximate product: int16, bfloat16, float32, or
                auto (bfloat16 if this processor multiplies it natively, else int16 if it can, else float32).

        Raises:
            SaeSweepError: if the library cannot be compiled or loaded, for example from a noexec folder.
        """
        self._library = _load(build(cache))
        self._panel: int = self._library.panel_features()
        self.screen = self._best_screen() if screen == "auto" else screen
        if self.screen == "int16" and not self.has_int16:
            raise SaeSweepError("this processor has no 16-bit screen")
        self._encode: Callable[[_Search], Encoded | None] = (
            self._encode_int16 if self.screen == "int16" else self._encode_from_dense
        )
        self._scratch: dict[str, Tensor] = {}
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

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self._library.normalise_rows(_pointer(x), *x.shape, eps, _pointer(out))
        return out

    def encode_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, dead_candidates: Tensor | None = None
    ) -> Encoded:
        encoded = self._encode(_Search(x, W, b, k, None, len(x) * k, dead_candidates))
        assert encoded is not None  # exactly k per row
        return encoded

    def encode_above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        max_nnz: int,
        dead_candidates: Tensor | None = None,
    ) -> Encoded | None:
        return self._encode(_Search(x, W, b, 0, floors, max_nnz, dead_candidates))

    def _encode_int16(self, search: _Search) -> Encoded | None:
        x, W, b, k, floors, max_nnz, dead = search
        features, width = W.shape
        order, first_dead = self._order(features, dead)
        slots, stride = len(order), len(order) - first_dead
        pairs = self._scratch_of("pairs", slots * ((width + 1) // 2), torch.int32)
        steps, norm_bounds = (self._scratch_of(name, slots, torch.float32) for name in ("steps", "norms"))
        packed = _pointer(pairs), _pointer(steps), _pointer(norm_bounds)
        self._library.pack(_pointer(W), width, _pointer(order), slots, *packed)
        estimates = self._scratch_of("estimates", len(x) * stride, torch.float32)
        error_per_norm = torch.empty(len(x))
        csr = self._library.encode_int16(
            *(_pointer(x), len(x), _pointer(W), _pointer(b), features, width),
            *(*packed, _pointer(order), slots, k, _pointer(floors), max_nnz),
            *(first_dead, _pointer(estimates), _pointer(error_per_norm)),
        )
        encoded = self._export(csr, len(x), features)
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
        estimates = self._scratch_of("estimates", len(x) * stride, torch.float32)[: len(x) * stride]
        estimates, error_per_norm = estimates.view(len(x), stride), torch.empty(len(x))
        parts = []
        for first in range(0, len(x), _BLOCK_TOKENS):
            rows = x[first : first + _BLOCK_TOKENS]
            z = torch.mm(narrow_x[first : first + _BLOCK_TOKENS], narrow_W.t())
            csr = self._library.encode_from_dense(
                *(_pointer(z), dtype is torch.bfloat16, relative_error, _pointer(rows), len(rows)),
                *(_pointer(W), _pointer(b), features, width, _pointer(norm_bounds)),
                *(k, _pointer(floors), max_nnz, _pointer(dead), stride),
                *(_pointer(estimates[first:]), _pointer(error_per_norm[first:])),
            )
            part = self._export(csr, len(rows), features)
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

    def encode_dead_topk(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, estimates: Estimates | None
    ) -> Encoded:
        if estimates is None:
            return super().encode_dead_topk(x, W, b, k, estimates)
        values = estimates.values
        found = self._library.topk_candidates(
            *(_pointer(values), values.shape[1], _pointer(estimates.columns), _pointer(b)),
            *(_pointer(estimates.norm_bounds), len(W), _pointer(estimates.error_per_norm), len(x), k),
        )
        exported = self._export(found, len(x), len(W))
        assert exported is not None  # no maximum was set
        candidates = exported.csr
        exact = self.sddmm(candidates, x, W)
        if b is not None:
            exact += b[candidates.indices]
        columns, kept = torch.empty(len(x), k, dtype=torch.int32), torch.empty(len(x), k)
        self._library.topk_csr_rows(
            *(_pointer(candidates.offsets), _pointer(candidates.indices), _pointer(exact), len(x), k),
            *(_pointer(columns), _pointer(kept)),
        )
        return Encoded(CSR(torch.arange(len(x) + 1) * k, columns.flatten(), len(W)), kept.flatten())

    def _export(self, csr: int, rows: int, columns: int) -> Encoded | None:
        """Copy a CSR out of the library, which frees it; None if it exceeded its maximum."""
        nnz = self._library.csr_nnz(csr)
        if nnz < 0:
            self._library.csr_export(csr, None, None, None)
            return None
        offsets = torch.empty(rows + 1, dtype=torch.int64)
        indices, values = torch.empty(nnz, dtype=torch.int32), torch.empty(nnz)
        self._library.csr_export(csr, _pointer(offsets), _pointer(indices), _pointer(values))
        return Encoded(CSR(offsets, indices, columns), values)

    def _scratch_of(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """Memory that every step uses again: fresh pages would cost as much as the work."""
        held = self._scratch.get(name)
        if held is None or len(held) < size:
            held = self._scratch[name] = torch.empty(size, dtype=dtype)
        return held

    def topk(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        z = z.contiguous()
        columns, values = torch.empty(len(z), k, dtype=torch.int32), torch.empty(len(z), k)
        self._library.topk_rows(_pointer(z), *z.shape, k, _pointer(columns), _pointer(values))
        return columns, values

    def transpose(self, csr: CSR) -> Transposed:
        offsets = torch.empty(csr.columns + 1, dtype=torch.int64)
        indices, permutation = torch.empty_like(csr.indices), torch.empty(csr.nnz, dtype=torch.int64)
        # each part counts all columns: that should be little work beside its non-zeros
        parts = max(1, min(torch.get_num_threads(), csr.nnz // (4 * csr.columns + 1)))
        counts = torch.empty(parts * csr.columns, dtype=torch.int64)
        self._library.transpose(
            *(_pointer(csr.offsets), _pointer(csr.indices), csr.rows, csr.columns, parts, _pointer(counts)),
            *(_pointer(offsets), _pointer(indices), _pointer(permutation)),
        )
        return Transposed(CSR(offsets, indices, csr.rows), permutation)

    def spmm(self, csr: CSR, values: Tensor, dense: Tensor) -> Tensor:
        out = self._results.empty(csr.rows, dense.shape[1])
        self._library.spmm(
            *(_pointer(csr.offsets), _pointer(csr.indices), _pointer(values), csr.rows, csr.columns),
            *(_pointer(dense), dense.shape[1], self._product_buffer(csr, dense), _pointer(out)),
        )
        return out

    def sddmm(self, csr: CSR, left: Tensor, right: Tensor) -> Tensor:
        out = torch.empty(csr.nnz)
        self._library.sddmm(
            *(_pointer(csr.offsets), _pointer(csr.indices), csr.rows, csr.columns),
            *(_pointer(left), _pointer(right), left.shape[1], self._product_buffer(csr, right)),
            _pointer(out),
        )
        return out

    def _product_buffer(self, csr: CSR, dense: Tensor) -> int | None:
        size = self._library.product_buffer_size(csr.nnz, csr.columns, dense.shape[1])
        return _pointer(self._scratch_of("slices", size, torch.float32)) if size else None

    def adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        (beta1, beta2), step = update.betas, update.step
        scale = 1.0 if update.gradient_scale is None else float(update.gradient_scale)
        self._library.adam_rows(
            *map(_pointer, (weights, gradient, *moments)),
            *(*weights.shape, beta1, beta2, update.lr / (1 - beta1**step), (1 - beta2**step) ** 0.5),
            *(update.eps, scale, update.tangent, _UNIT_ROWS[update.unit_rows]),
        )


def _load(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise SaeSweepError(
            f"the compiled kernels cannot be loaded (delete them if they are damaged): {error}"
        ) from error
    missing = () if library.panel_features() else _INT16_FUNCTIONS
    for name, (result, arguments) in _SIGNATURES.items():
        if name in missing:
            continue
        function = getattr(library, name)
        function.restype, function.argtypes = result, [_TYPES[kind] for kind in arguments]
    return library


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    assert tensor.dtype in _DTYPES, tensor.dtype
    return tensor.data_ptr()


def _norm_bounds(W: Tensor) -> Tensor:
    """Norm of each row; infinity if its squares may have underflowed."""
    norms = W.norm(dim=-1)
    return torch.where((norms < _MIN_NORM) & W.any(dim=-1), torch.inf, norms)


def _concatenate(parts: list[Encoded], features: int, x: Tensor) -> Encoded:
    if not parts:
        nothing = torch.zeros(1, dtype=torch.int64)
        return Encoded(CSR(nothing, torch.empty(0, dtype=torch.int32), features), x.new_empty(0))
    counts = torch.cat([part.csr.offsets.diff() for part in parts])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.cat([part.csr.indices for part in parts])
    return Encoded(CSR(offsets, indices, features), torch.cat([part.values for part in parts]))
