"""Loads a compiled library and calls its functions by ctypes.

Why ctypes, and neither `torch.utils.cpp_extension` nor `torch.library` (tried with torch 2.13 on two cores):

- An extension that includes torch's headers compiles in 34 s instead of 3, needs ninja and Python's headers,
  and anew for every version of torch and Python. Its loader takes what lies in its cache folder as it is.
- A custom operator in Python costs 88 microseconds per call, ctypes 0.4. What it adds is the use inside
  torch.compile and a check of types, not of shapes.
- What both give for free is little to write: ctypes releases the GIL, the C++ functions return a status in
  place of exceptions, and `ops.checks` checks arguments with one message for all backends.
"""

import ctypes
import os
import tempfile
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_sweep.config import SaeSweepError

_SIGNATURES = {
    "panel_features": ("i", ""),
    "pack": ("s", "pipippp"),
    "encode_int16": ("s", "pippiippppiipiippp"),
    "encode_from_dense": ("s", "pbfpippiipipipippp"),
    "topk_candidates": ("s", "pipppipiip"),
    "topk_csr_rows": ("s", "pppiipp"),
    "csr_nnz": ("i", "p"),
    "csr_export": ("", "pppp"),
    "csr_free": ("", "p"),
    "topk_rows": ("s", "piiipp"),
    "product_buffer_size": ("i", "iii"),
    "spmm": ("", "pppiipipp"),
    "sddmm": ("", "ppiippipp"),
    "transpose": ("", "ppiiipppp"),
    "adam_rows": ("", "ppppiiffffffbn"),
    "normalise_rows": ("", "piifp"),
    "failure": ("c", ""),
}
"""Result and arguments of each C function (p pointer, i int64, n int, f float, b bool, c text, s status)."""
_INT16_FUNCTIONS = ("pack", "encode_int16")
"""Missing from the library if the processor has no 16-bit screen."""
_TYPES = {
    "p": c_void_p,
    "i": c_int64,
    "n": c_int,
    "s": c_int,
    "f": c_float,
    "b": c_bool,
    "c": c_char_p,
    "": None,
}
_OUT_OF_MEMORY = 1
"""`kOutOfMemory` in guard.h."""


@cache
def load_library(content: bytes) -> ctypes.CDLL:
    """Load a library from memory, so that what runs is what was checked, whatever becomes of its file.

    Its functions raise MemoryError or RuntimeError if the status that they return says so.

    Raises:
        SaeSweepError: if it cannot be loaded, or lacks a function.
    """
    try:
        library = _open(content)
        missing = () if library.panel_features() else _INT16_FUNCTIONS
        for name, (result, arguments) in _SIGNATURES.items():
            if name not in missing:
                _declare(library, name, result, arguments)
    except (OSError, AttributeError) as error:
        raise SaeSweepError(f"the compiled kernels cannot be loaded: {error}") from error
    return library


def _open(content: bytes) -> ctypes.CDLL:
    try:
        # it stays open: the loader takes a path that it has seen for the library that it had then
        descriptor = os.memfd_create("sae_sweep-kernels")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except (OSError, AttributeError):  # not on this system: from a folder that only we can read
        with tempfile.TemporaryDirectory(prefix="sae_sweep-kernels-") as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(content)
            return ctypes.CDLL(str(path))


def _declare(library: ctypes.CDLL, name: str, result: str, arguments: str) -> None:
    function = getattr(library, name)
    function.restype, function.argtypes = _TYPES[result], [_TYPES[kind] for kind in arguments]
    if result == "s":
        function.errcheck = _raise_failure(library, name)


def _raise_failure(library: ctypes.CDLL, name: str) -> Callable[[int, Any, Any], None]:
    def check(status: int, function: Any, arguments: Any) -> None:
        del function, arguments
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"out of memory in the kernel {name}")
        if status:
            raise RuntimeError(f"the kernel {name} failed: {library.failure().decode(errors='replace')}")

    return check


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a tensor's numbers; its dtype and layout are checked already."""
    return None if tensor is None else tensor.data_ptr()
