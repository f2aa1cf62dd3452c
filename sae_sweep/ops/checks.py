"""Checks the arguments of kernels, which would read or write beyond a tensor of another shape."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

INT32_LIMIT = 1 << 31
"""Rows and columns are counted in int32."""


class Check:
    """Checks the arguments of one call, in microseconds: no number is read, except where it says so.

    All raise ValueError with the kernel, the argument, what it is and what it should be.
    """

    def __init__(self, kernel: str, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            kernel: name of the kernel.
            device: device type that its tensors must have; None: that of the first.
            dtype: dtype of its floats; None: that of the first.
        """
        self._kernel = kernel
        self._device_type = device
        self._device: torch.device | None = None
        self._dtype = dtype

    def floats(self, name: str, tensor: Tensor, *shape: int | None) -> torch.Size:
        """Check a contiguous tensor of floats and return its shape; None stands for any size."""
        if self._dtype is None and isinstance(tensor, Tensor) and tensor.is_floating_point():
            self._dtype = tensor.dtype
        return self._tensor(name, tensor, self._dtype or torch.float32, shape)

    def integers(self, name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> torch.Size:
        """Check a contiguous tensor of integers and return its shape."""
        return self._tensor(name, tensor, dtype, shape)

    def indices(self, name: str, tensor: Tensor, dtype: torch.dtype, length: int | None, limit: int) -> None:
        """Check indices into `limit` numbers; reads them, so on a GPU it waits."""
        self.integers(name, tensor, dtype, length)
        if len(tensor):
            low, high = (int(bound) for bound in tensor.aminmax())
            if low < 0 or high >= limit:
                self.refuse(name, f"holds numbers from {low} to {high}", f"0 to {limit - 1}")

    def placed(self, name: str, tensor: Tensor) -> None:
        """Check the device of a tensor of which all else is known."""
        device = tensor.device
        if self._device is None and self._device_type in (None, device.type):
            self._device = device
        if device != self._device:
            self.refuse(name, f"is on {device}", f"on {self._device or self._device_type}")

    def number(self, name: str, value: Any, low: int, high: int | None = None) -> None:
        """Check that a value is an integer from `low` to `high`; None: without an upper bound."""
        if not isinstance(value, int) or value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            self.refuse(name, f"is {value!r}", f"an integer {bounds}")

    def choice(self, name: str, value: Any, valid: Collection[Any]) -> None:
        """Check that a value is one of several."""
        if value not in valid:
            self.refuse(name, f"is {value!r}", f"one of {', '.join(map(repr, valid))}")

    def refuse(self, name: str, is_: str, wanted: str) -> None:
        """Raise the error."""
        raise ValueError(f"kernel {self._kernel}: {name} {is_}, and must be {wanted}")

    def _tensor(
        self, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]
    ) -> torch.Size:
        if not isinstance(tensor, Tensor):
            self.refuse(name, f"is a {type(tensor).__name__}", "a tensor")
        found = tensor.shape
        if (
            len(found) != len(shape)
            or any(want is not None and want != size for want, size in zip(shape, found, strict=True))
            or tensor.dtype is not dtype
            or not tensor.is_contiguous()
        ):
            sizes = ", ".join("any" if want is None else str(want) for want in shape)
            self.refuse(name, f"is {_describe(tensor)}", f"contiguous {_name(dtype)} [{sizes}]")
        self.placed(name, tensor)
        return found


def _describe(tensor: Tensor) -> str:
    layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
    return f"{_name(tensor.dtype)} {list(tensor.shape)}, {layout}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
