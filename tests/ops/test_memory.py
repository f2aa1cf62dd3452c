"""Memory of large results is used again, and never while somebody still has it."""

import gc

import pytest
import torch

from sae_sweep.ops.cpu.memory import MemoryPool

ROWS, WIDTH = 600, 512


def test_a_block_is_used_again_when_its_last_tensor_is_gone():
    memory = MemoryPool()
    first = memory.empty(ROWS, WIDTH)
    at = first.data_ptr()
    assert first.shape == (ROWS, WIDTH)
    assert first.dtype == torch.float32
    assert memory.empty(ROWS, WIDTH).data_ptr() != at
    view = first.t()[3:]
    del first
    assert memory.empty(ROWS, WIDTH).data_ptr() != at
    del view
    gc.collect()
    assert memory.empty(ROWS, WIDTH).data_ptr() == at


@pytest.mark.parametrize("rows", [ROWS, ROWS - 7, ROWS - 80])
def test_a_block_serves_smaller_results_of_any_shape(rows):
    memory = MemoryPool()
    at = memory.empty(ROWS, WIDTH).data_ptr()
    smaller = memory.empty(rows, WIDTH)
    assert smaller.data_ptr() == at
    assert smaller.shape == (rows, WIDTH)
    assert smaller.is_contiguous()
    assert memory.empty(WIDTH, ROWS).data_ptr() != at


def test_what_is_much_smaller_or_larger_has_its_own():
    memory = MemoryPool()
    at = memory.empty(4 * ROWS, WIDTH).data_ptr()
    assert memory.empty(ROWS, WIDTH).data_ptr() != at
    assert memory.empty(5 * ROWS, WIDTH).data_ptr() != at
    assert memory.empty(4 * ROWS, WIDTH).data_ptr() == at


def test_results_begin_a_line_of_the_cache():
    memory = MemoryPool()
    assert all(memory.empty(ROWS + i, WIDTH).data_ptr() % 64 == 0 for i in range(5))


def test_a_gradient_keeps_its_block():
    memory = MemoryPool()
    weight = torch.zeros(ROWS, WIDTH, requires_grad=True)

    class Give(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return memory.empty(ROWS, WIDTH).fill_(3.0)

    Give.apply(weight).backward()
    gc.collect()
    for _ in range(3):
        memory.empty(ROWS, WIDTH).fill_(5.0)
    assert (weight.grad == 3).all()


@pytest.mark.parametrize("count", [1, 20])
def test_tensors_outlive_the_memory_that_gave_them(count):
    memory = MemoryPool()
    tensors = [memory.empty(ROWS, WIDTH).fill_(number) for number in range(count)]
    del memory
    gc.collect()
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
