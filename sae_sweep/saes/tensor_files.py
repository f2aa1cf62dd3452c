"""Files of tensors, read without running code of theirs: safetensors, and what `torch.save` wrote."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.store import regular


def read_safetensors(file: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        SaeSweepError: one line with the file and the `remedy`, if it is missing or damaged.
    """
    try:
        return load_file(regular(file))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise SaeSweepError(f"cannot read {file}: {first_line(error)}; {remedy}") from error


def read_state_dict(file: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, on the CPU; nothing but tensors is unpickled.

    Raises:
        SaeSweepError: one line with the file, if it is missing, damaged, or holds anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            found = torch.load(regular(file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaeSweepError(
            f"{file} holds more than tensors, or is damaged; it is not opened, because that could run code: "
            "save the SAE's state_dict() again with torch.save"
        ) from error
    except Exception as error:  # the library raises almost anything when a file is damaged
        raise SaeSweepError(f"cannot read {file}: {first_line(error)}; {remedy}") from error
    if not isinstance(found, Mapping) or not all(_plain(*item) for item in found.items()):
        raise SaeSweepError(f"{file} holds no state_dict of plain tensors; {remedy}")
    return dict(found)


def _plain(name: Any, value: Any) -> bool:
    """Whether it is a named dense tensor that holds each of its values: a small file may claim a huge one."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
