"""Residuals of a real language model, at the width that a benchmark asks for."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_sweep.activations import ActivationStream, load_language_model, pick_device
from sae_sweep.config import ActivationsConfig, EmbeddedDataset, ModelConfig, PackingConfig, RunConfig
from sae_sweep.store import cache_folder
from sae_sweep.text import TrainingSequences, open_text

BUNDLED = "bundled:gpt2-pico"


@dataclass(frozen=True)
class Recorded:
    """SAE inputs, and where they come from."""

    x: Tensor
    """float32 [tokens, d_in]."""
    label: str
    """Their model and layers, and how they got their width."""


def record(model: str, layers: list[int], tokens: int, d_in: int) -> Recorded:
    """Residuals of `layers`, concatenated, of shuffled tokens of the standard library's documentation.

    Wider ones are cut to d_in dimensions; narrower ones are rotated into them by a fixed random orthonormal
    map, which keeps norms and dot products.
    """
    config = RunConfig(
        model=ModelConfig(path=model),
        dataset=EmbeddedDataset(name="stdlib_docs"),
        layer=max(layers),
        dictionary=1,
        tokens=tokens,
        batch=tokens,
        packing=PackingConfig(),
        activations=ActivationsConfig(buffer_tokens=2 * tokens, dtype="float32"),
    )
    lm = load_language_model(config.model, pick_device("cpu"))
    source = open_text(config.dataset, cache_folder(None))
    sequences = TrainingSequences(source, config.packing, lm.tokenizer, config.data_seed)
    found = next(ActivationStream(lm, sequences, config, layers)).activations
    x = torch.cat([found[layer] for layer in layers], dim=-1)
    return Recorded(
        _at_width(x, d_in), f"{lm.name}, layers {layers}: {x.shape[1]} dimensions, {_how(x, d_in)}"
    )


def load(file: Path, d_in: int) -> Recorded:
    """The first tensor of a safetensors file, [tokens, d]."""
    x = next(iter(load_file(file).values())).float()
    return Recorded(_at_width(x, d_in), f"{file.name}: {x.shape[1]} dimensions, {_how(x, d_in)}")


def _at_width(x: Tensor, d_in: int) -> Tensor:
    if x.shape[1] >= d_in:
        return x[:, :d_in].contiguous()
    square = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(0))
    return x @ torch.linalg.qr(square).Q[: x.shape[1]]


def _how(x: Tensor, d_in: int) -> str:
    width = x.shape[1]
    if width == d_in:
        return "as they are"
    return f"cut to {d_in}" if width > d_in else f"rotated into {d_in}"
