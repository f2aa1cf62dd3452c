"""Random inputs, the kernels in plain torch, and what it is to find the same as they do."""

import torch

from sae_sweep.ops import CSR, Encoded
from sae_sweep.ops.reference import ReferenceKernels

REFERENCE = ReferenceKernels()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def assert_same_csr(ours: CSR, theirs: CSR) -> None:
    assert torch.equal(ours.offsets, theirs.offsets)
    assert torch.equal(ours.indices, theirs.indices)
    assert ours.columns == theirs.columns


def assert_same(ours: Encoded | None, theirs: Encoded | None) -> None:
    assert ours is not None
    assert theirs is not None
    assert_same_csr(ours.csr, theirs.csr)
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-5)
