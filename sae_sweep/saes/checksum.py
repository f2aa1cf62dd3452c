"""A checksum of tensors and texts: file formats notice a cut file, but not a flipped bit."""

import dataclasses
import json
from collections.abc import Mapping

from torch import Tensor, uint8
from xxhash import xxh3_128

from sae_sweep.saes.base import SAE


def sae_fingerprint(sae: SAE) -> str:
    """Identify an SAE on the CPU by its weights and by how it computes."""
    tensors = {name: value.detach().contiguous() for name, value in sae.state_dict().items()}
    how = [sae.architecture.kind, sae.normalisation, sae.numerics, dataclasses.asdict(sae.architecture)]
    return tensors_checksum(tensors, json.dumps(how, sort_keys=True))


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
