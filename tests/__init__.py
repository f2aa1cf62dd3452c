"""All tests. Without a GPU, Triton interprets its kernels, which must be set before anything imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
