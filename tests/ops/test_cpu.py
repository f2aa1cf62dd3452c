"""The C++ kernels alone: threads."""

import pytest
import torch

from sae_sweep.ops import AdamUpdate
from tests.ops.helpers import CPU_SCREENS, draw


@pytest.mark.parametrize("backend", CPU_SCREENS, indirect=True)
def test_threads_do_not_change_a_bit(backend):
    kernels, x, W, k = backend.kernels, draw(500, 40), draw(300, 40, seed=1), 6
    candidates = torch.arange(0, 300, 2)

    def everything() -> list[torch.Tensor]:
        encoded = kernels.encode_topk(x, W, None, k, candidates)
        dead = kernels.encode_dead_topk(x, W[candidates], None, 40, encoded.estimates)
        transposed, permutation = kernels.transpose(encoded.csr)
        above = kernels.encode_above(x, W, None, torch.full((300,), 5.0), 10**6)
        weights, moments = draw(300, 40), tuple(torch.zeros(2, 300, 40))
        kernels.adam(weights, W, moments, AdamUpdate(1e-2, (0.9, 0.99), 1e-8, 1, None, True, "after"))
        return [
            above.csr.indices,
            above.values,
            weights,
            *moments,
            kernels.normalise(x, 1e-5),
            encoded.values,
            dead.csr.indices,
            dead.values,
            kernels.spmm(encoded.csr, encoded.values, W),
            kernels.spmm(transposed, encoded.values[permutation], x),
            kernels.sddmm(encoded.csr, x, W),
        ]

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (4, 1):
            torch.set_num_threads(count)
            results.append(everything())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
