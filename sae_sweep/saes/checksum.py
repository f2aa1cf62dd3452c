"""A checksum of tensors and texts: file formats notice a cut file, but not a flipped bit."""

import json
from collections.abc import Mapping

from torch import Tensor, uint8
from xxhash import xxh3_128


def tensors_checksum(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """XXH3-128 in hex of the name, dtype, shape and bytes of every tensor, and of `texts`.

    Args:
        tensors: contiguous tensors on the CPU, in any order.
        texts: whatever else belongs to them, in this order.
    """
    names = sorted(tensors)
    kinds = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    total = xxh3_128(json.dumps([texts, kinds]).encode())
    for name in names:
        total.update(tensors[name].detach().reshape(-1).view(uint8).numpy().data)
    return total.hexdigest()
