"""The C++ kernels behind the interface of all backends."""

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_sweep.config import SaeSweepError
from sae_sweep.ops.cpu.build import build
from sae_sweep.ops.cpu.memory import Recycled
from sae_sweep.ops.interface import AdamUpdate, Code, Estimates, Found, Kernels, Transposed

_BLOCK = 480
"""Tokens whose dense products are held at a time, where there is no 16-bit screen."""
_ROUNDED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding to a dtype."""
_TINY = 1e-14
"""Norm of a row whose squares are close to underflow."""
_UNIT = {None: 0, "before": -1, "after": 1}

_SIGNATURES = {
    "panel_features": (c_int64, ""),
    "pack": (None, "pipippp"),
    "encode_packed": (c_void_p, "pippiippppiipiipp"),
    "encode_screened": (c_void_p, "pbfpippiipipipipp"),
    "doubtful": (c_void_p, "pipppipii"),
    "largest_entries": (None, "pppiipp"),
    "code_entries": (c_int64, "p"),
    "code_take": (None, "pppp"),
    "topk_rows": (None, "piiipp"),
    "product_room": (c_int64, "iii"),
    "combine_rows": (None, "pppiipipp"),
    "entry_products": (None, "ppiippipp"),
    "transpose": (None, "ppiiipppp"),
    "adam_rows": (None, "ppppiiffffffbn"),
    "normalise_rows": (None, "piifp"),
}
"""Of each function: what it returns, and its arguments (p pointer, i int64, n int, f float, b bool)."""
_OF_THE_SCREEN = ("pack", "encode_packed")
"""Functions that there are only with a 16-bit screen."""
_DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.int64)
_TYPES = {"p": c_void_p, "i": c_int64, "n": c_int, "f": c_float, "b": c_bool}


class _Search(NamedTuple):
    """What an encoder is to find: the k largest, or, with k = 0, at most `most` above the floors."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    k: int
    floors: Tensor | None
    most: int
    watched: Tensor | None


class CPUKernels(Kernels):
    """float32 on the CPU; on as many threads as torch uses."""

    name = "cpu"
    watches = True

    def __init__(self, cache: Path, *, screen: str = "auto") -> None:
        """Compile or find the library in `cache`.

        Args:
            cache: the cache folder.
            screen: in what the encoder's dense product is screened: int16, bfloat16, float32, or auto: the
                first of bfloat16 and int16 that this processor multiplies by itself, else float32.

        Raises:
            SaeSweepError: if it cannot be compiled, or not be loaded (a folder mounted noexec).
        """
        self._library = _load(build(cache))
        self._panel: int = self._library.panel_features()
        self.screen = self._best_screen() if screen == "auto" else screen
        if self.screen == "int16" and not self.has_int16:
            raise SaeSweepError("this processor has no 16-bit screen")
        self._scratch: dict[str, Tensor] = {}
        self._results = Recycled()

    @property
    def has_int16(self) -> bool:
        """Whether this processor has the 16-bit screen."""
        return self._panel > 0

    def _best_screen(self) -> str:
        here = torch.cpu.get_capabilities()
        if here.get("amx_bf16") or here.get("avx512_bf16"):
            return "bfloat16"
        return "int16" if self.has_int16 else "float32"

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        self._library.normalise_rows(_at(x), *x.shape, eps, _at(out))
        return out

    def largest(self, x: Tensor, W: Tensor, b: Tensor | None, k: int, watched: Tensor | None = None) -> Found:
        found = self._encode(_Search(x, W, b, k, None, len(x) * k, watched))
        assert found is not None  # exactly k a row
        return found

    def above(
        self,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        floors: Tensor,
        most: int,
        watched: Tensor | None = None,
    ) -> Found | None:
        return self._encode(_Search(x, W, b, 0, floors, most, watched))

    def _encode(self, search: _Search) -> Found | None:
        return self._encode_packed(search) if self.screen == "int16" else self._encode_screened(search)

    def _encode_packed(self, search: _Search) -> Found | None:
        x, W, b, k, floors, most, watched = search
        features, width = W.shape
        order, first = self._order(features, watched)
        pairs = self._room("pairs", len(order) * ((width + 1) // 2), torch.int32)
        steps, reaches = (self._room(name, len(order), torch.float32) for name in ("steps", "reaches"))
        self._library.pack(_at(W), width, _at(order), len(order), _at(pairs), _at(steps), _at(reaches))
        stride = len(order) - first
        estimates = self._room("estimates", len(x) * stride, torch.float32)
        of_token = torch.empty(len(x))
        code = self._library.encode_packed(
            *(_at(x), len(x), _at(W), _at(b), features, width),
            *(_at(pairs), _at(steps), _at(reaches), _at(order), len(order), k, _at(floors), most),
            *(first, _at(estimates), _at(of_token)),
        )
        found = self._take(code, len(x), features)
        if found is None or watched is None:
            return found
        places = torch.arange(len(watched), dtype=torch.int32)
        of_feature = reaches[first : first + len(watched)].clone()
        values = estimates[: len(x) * stride].view(len(x), stride)
        return found._replace(estimates=Estimates(values, places, of_token, of_feature))

    def _order(self, features: int, watched: Tensor | None) -> tuple[Tensor, int]:
        """Places of the features in whole panels, -1 where none is, and the first place of those watched."""
        every = torch.arange(features, dtype=torch.int32)
        if watched is None:
            groups = [every]
        else:
            others = torch.ones(features, dtype=torch.bool)
            others[watched] = False
            groups = [every[others], watched.int()]
        first, *rest = (
            torch.nn.functional.pad(group, (0, -len(group) % self._panel), value=-1) for group in groups
        )
        return torch.cat([first, *rest]), len(first)

    def _encode_screened(self, search: _Search) -> Found | None:
        x, W, b, k, floors, most, watched = search
        features, width = W.shape
        dtype = getattr(torch, self.screen)
        norms = _bounds(W)
        screen, weights = x.to(dtype), W.to(dtype)
        # both factors and the sum are rounded; sums inside are of float32
        share = 1.05 * (3 * _ROUNDED[dtype] + width * _ROUNDED[torch.float32])
        kept = None if watched is None else watched.int()
        stride = 0 if kept is None else len(kept)
        estimates = self._room("estimates", len(x) * stride, torch.float32)[: len(x) * stride]
        estimates, of_token = estimates.view(len(x), stride), torch.empty(len(x))
        parts = []
        for first in range(0, len(x), _BLOCK):
            rows = x[first : first + _BLOCK]
            z = torch.mm(screen[first : first + _BLOCK], weights.t())
            code = self._library.encode_screened(
                *(_at(z), dtype is torch.bfloat16, share, _at(rows), len(rows)),
                *(_at(W), _at(b), features, width, _at(norms), k, _at(floors), most),
                *(_at(kept), stride, _at(estimates[first:]), _at(of_token[first:])),
            )
            part = self._take(code, len(rows), features)
            if part is None:
                return None
            parts.append(part)
        found = _joined(parts, features, x)
        if len(found.values) > most:
            return None
        if kept is None:
            return found
        places = torch.arange(stride, dtype=torch.int32)
        return found._replace(estimates=Estimates(estimates, places, of_token, norms[kept]))

    def largest_watched(
        self, x: Tensor, W: Tensor, b: Tensor | None, k: int, estimates: Estimates | None
    ) -> Found:
        if estimates is None:
            return super().largest_watched(x, W, b, k, estimates)
        values = estimates.values
        code = self._library.doubtful(
            *(_at(values), values.shape[1], _at(estimates.places), _at(b)),
            *(_at(estimates.of_feature), len(W), _at(estimates.of_token), len(x), k),
        )
        found = self._take(code, len(x), len(W))
        assert found is not None  # no bound was set
        doubtful = found.code
        exact = self.products(doubtful, x, W)
        if b is not None:
            exact += b[doubtful.indices]
        columns, kept = torch.empty(len(x), k, dtype=torch.int32), torch.empty(len(x), k)
        self._library.largest_entries(
            *(_at(doubtful.offsets), _at(doubtful.indices), _at(exact), len(x), k, _at(columns), _at(kept))
        )
        return Found(Code(torch.arange(len(x) + 1) * k, columns.flatten(), len(W)), kept.flatten())

    def _take(self, code: int, rows: int, columns: int) -> Found | None:
        entries = self._library.code_entries(code)
        if entries < 0:
            self._library.code_take(code, None, None, None)
            return None
        offsets = torch.empty(rows + 1, dtype=torch.int64)
        indices, values = torch.empty(entries, dtype=torch.int32), torch.empty(entries)
        self._library.code_take(code, _at(offsets), _at(indices), _at(values))
        return Found(Code(offsets, indices, columns), values)

    def _room(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """Memory that is used anew at every step: fresh pages would cost as much as the work."""
        held = self._scratch.get(name)
        if held is None or len(held) < size:
            held = self._scratch[name] = torch.empty(size, dtype=dtype)
        return held

    def largest_of(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        z = z.contiguous()
        columns, values = torch.empty(len(z), k, dtype=torch.int32), torch.empty(len(z), k)
        self._library.topk_rows(_at(z), *z.shape, k, _at(columns), _at(values))
        return columns, values

    def transpose(self, code: Code) -> Transposed:
        offsets = torch.empty(code.columns + 1, dtype=torch.int64)
        indices, places = torch.empty_like(code.indices), torch.empty(len(code.indices), dtype=torch.int64)
        # a part's counts are to be few beside its entries
        parts = max(1, min(torch.get_num_threads(), len(code.indices) // (4 * code.columns + 1)))
        counts = torch.empty(parts * code.columns, dtype=torch.int64)
        self._library.transpose(
            *(_at(code.offsets), _at(code.indices), code.rows, code.columns, parts, _at(counts)),
            *(_at(offsets), _at(indices), _at(places)),
        )
        return Transposed(Code(offsets, indices, code.rows), places)

    def combine(self, code: Code, values: Tensor, dense: Tensor) -> Tensor:
        out = self._results.empty(code.rows, dense.shape[1])
        self._library.combine_rows(
            *(_at(code.offsets), _at(code.indices), _at(values), code.rows, code.columns),
            *(_at(dense), dense.shape[1], self._product_room(code, dense), _at(out)),
        )
        return out

    def products(self, code: Code, left: Tensor, right: Tensor) -> Tensor:
        out = torch.empty(len(code.indices))
        self._library.entry_products(
            *(_at(code.offsets), _at(code.indices), code.rows, code.columns),
            *(_at(left), _at(right), left.shape[1], self._product_room(code, right), _at(out)),
        )
        return out

    def _product_room(self, code: Code, dense: Tensor) -> int | None:
        size = self._library.product_room(len(code.indices), code.columns, dense.shape[1])
        return _at(self._room("slices", size, torch.float32)) if size else None

    def adam(
        self, weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], update: AdamUpdate
    ) -> None:
        (beta1, beta2), step = update.betas, update.step
        self._library.adam_rows(
            *(_at(weights), _at(gradient), _at(moments[0]), _at(moments[1]), *weights.shape, beta1, beta2),
            *(update.rate / (1 - beta1**step), (1 - beta2**step) ** 0.5, update.eps),
            *(1.0 if update.shrink is None else float(update.shrink), update.tangent, _UNIT[update.unit]),
        )


def _load(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise SaeSweepError(
            f"the compiled kernels cannot be loaded (delete them if they are damaged): {error}"
        ) from error
    missing = () if library.panel_features() else _OF_THE_SCREEN
    for name, (result, arguments) in _SIGNATURES.items():
        if name in missing:
            continue
        function = getattr(library, name)
        function.restype, function.argtypes = result, [_TYPES[kind] for kind in arguments]
    return library


def _at(tensor: Tensor | None) -> int | None:
    """Where its numbers lie."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    assert tensor.dtype in _DTYPES, tensor.dtype
    return tensor.data_ptr()


def _bounds(W: Tensor) -> Tensor:
    """The norms of rows; infinite where squares may have underflowed."""
    norms = W.norm(dim=-1)
    return torch.where((norms < _TINY) & W.any(dim=-1), torch.inf, norms)


def _joined(parts: list[Found], features: int, x: Tensor) -> Found:
    if not parts:
        nothing = torch.zeros(1, dtype=torch.int64)
        return Found(Code(nothing, torch.empty(0, dtype=torch.int32), features), x.new_empty(0))
    counts = torch.cat([part.code.offsets.diff() for part in parts])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.cat([part.code.indices for part in parts])
    return Found(Code(offsets, indices, features), torch.cat([part.values for part in parts]))
