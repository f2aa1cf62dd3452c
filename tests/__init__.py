"""All tests. Without a GPU, Triton's kernels are interpreted: Triton reads that when anything first imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
