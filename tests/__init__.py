"""All tests. Without a GPU, Triton interprets its kernels: it reads that setting at its first import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
