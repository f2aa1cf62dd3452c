"""Memory is reused, and never while a tensor or another thread still uses it."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sae_sweep.ops.cpu import memory
from sae_sweep.ops.cpu.memory import MemoryPool, Scratch

ROWS, WIDTH = 600, 512


def test_a_block_is_reused_when_its_last_tensor_is_gone():
    pool = MemoryPool()
    first = pool.empty(ROWS, WIDTH)
    at = first.data_ptr()
    assert first.shape == (ROWS, WIDTH)
    assert first.dtype == torch.float32
    assert pool.empty(ROWS, WIDTH).data_ptr() != at
    view = first.t()[3:]
    del first
    assert pool.empty(ROWS, WIDTH).data_ptr() != at
    del view
    gc.collect()
    assert pool.empty(ROWS, WIDTH).data_ptr() == at


@pytest.mark.parametrize("rows", [ROWS, ROWS - 7, ROWS - 80])
def test_a_block_serves_smaller_results_of_any_shape(rows):
    pool = MemoryPool()
    at = pool.empty(ROWS, WIDTH).data_ptr()
    smaller = pool.empty(rows, WIDTH)
    assert smaller.data_ptr() == at
    assert smaller.shape == (rows, WIDTH)
    assert smaller.is_contiguous()
    assert pool.empty(WIDTH, ROWS).data_ptr() != at


def test_much_smaller_or_larger_results_get_their_own_block():
    pool = MemoryPool()
    at = pool.empty(4 * ROWS, WIDTH).data_ptr()
    assert pool.empty(ROWS, WIDTH).data_ptr() != at
    assert pool.empty(5 * ROWS, WIDTH).data_ptr() != at
    assert pool.empty(4 * ROWS, WIDTH).data_ptr() == at


def test_results_start_on_a_cache_line():
    pool = MemoryPool()
    assert all(pool.empty(ROWS + i, WIDTH).data_ptr() % 64 == 0 for i in range(5))


def test_a_gradient_keeps_its_block():
    pool = MemoryPool()
    weight = torch.zeros(ROWS, WIDTH, requires_grad=True)

    class FromPool(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return pool.empty(ROWS, WIDTH).fill_(3.0)

    FromPool.apply(weight).backward()
    gc.collect()
    for _ in range(3):
        pool.empty(ROWS, WIDTH).fill_(5.0)
    assert (weight.grad == 3).all()


@pytest.mark.parametrize("count", [1, 20])
def test_tensors_outlive_the_pool(count):
    pool = MemoryPool()
    tensors = [pool.empty(ROWS, WIDTH).fill_(number) for number in range(count)]
    del pool
    gc.collect()
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))


def test_threads_do_not_get_each_others_blocks(monkeypatch):
    """Even if another thread comes in between, right after a block was chosen."""

    def slow_min(*args, **keywords):
        chosen = min(*args, **keywords)
        time.sleep(0.05)
        return chosen

    pool = MemoryPool()
    at = pool.empty(ROWS, WIDTH).data_ptr()
    monkeypatch.setattr(memory, "min", slow_min, raising=False)
    with ThreadPoolExecutor(2) as threads:
        matrices = list(threads.map(lambda _: pool.empty(ROWS, WIDTH), range(2)))
    addresses = {matrix.data_ptr() for matrix in matrices}
    assert at in addresses
    assert len(addresses) == 2


def test_scratch_memory_is_one_threads_own():
    scratch = Scratch()
    ours = scratch.empty("slices", 100, torch.float32)
    assert scratch.empty("slices", 60, torch.float32) is ours
    assert len(scratch.empty("slices", 101, torch.float32)) == 101
    ours = scratch.empty("slices", 60, torch.float32)
    with ThreadPoolExecutor(1) as thread:
        theirs = thread.submit(scratch.empty, "slices", 60, torch.float32).result()
    assert theirs.data_ptr() != ours.data_ptr()
