"""SAEs that other libraries trained, at inference: one class for all of their formulas."""

import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, SaeSweepError
from sae_sweep.saes.architectures import keep_top
from sae_sweep.saes.base import AVERAGE, IN_ITS_OWN_SPACE, SAE, Normalised

VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc",),
    "groupmax": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""Tensors of length d_sae, by architecture."""
_WITH_K = ("topk", "batchtopk", "groupmax")
_LARGEST = 2**31
"""Bound on d_in and d_sae, so that their product is a number of weights."""


@dataclass(frozen=True)
class ForeignConfig(ArchitectureConfig):
    """How an SAE of another library computes, in SAELens's words where it has them."""

    kind: ClassVar[str] = "foreign"
    architecture: str
    """One of `VECTORS`. batchtopk keeps the largest of a whole batch, so that a token's latents depend on the
    others; groupmax the largest of each of k groups of neighbours."""
    normalize_activations: str = "none"
    """none, expected_average_only_in, constant_norm_rescale or layer_norm."""
    apply_b_dec_to_input: bool = True
    k: int | None = None
    """Active features per token (topk, groupmax; batchtopk on average)."""
    centred: bool = False
    """Whether it was trained on residuals whose mean over d_in had been subtracted."""


class ForeignSAE(SAE):
    """An SAE of another library at inference; its caller flattens the activations of attention heads."""

    architecture: ForeignConfig

    def __init__(self, config: ForeignConfig, tensors: Mapping[str, Tensor]) -> None:
        d_in, d_sae = tensors["W_enc"].shape
        with torch.device("meta"):  # the given tensors take the place of the base class's
            super().__init__(config, d_in, d_sae, numerics="modern")
        how = config.normalize_activations
        self.normalisation = "centred" if config.centred and how in IN_ITS_OWN_SPACE else how
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value))
        if "b_enc" not in tensors:
            self.b_enc = None

    @property
    def caveat(self) -> str | None:
        """What a reader of its features should know; training from it takes care of both."""
        if self.architecture.architecture == "batchtopk":
            return (
                "this SAE keeps the largest latents of a batch: a token's features depend on its neighbours'"
            )
        if self.architecture.normalize_activations == AVERAGE:
            return "this SAE expects inputs that are scaled to an average norm of sqrt(d_in), as in SAELens"
        return None

    def normalise(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        if not (self.architecture.centred and self.normalisation == "constant_norm_rescale"):
            return super().normalise(x)
        mean = x.mean(dim=-1, keepdim=True)
        return super().normalise(x - mean)._replace(mean=mean)

    def pre_activations(self, xn: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        z = (xn - self.b_dec if self.architecture.apply_b_dec_to_input else xn) @ self.W_enc
        if self.architecture.architecture == "gated":
            return z
        return z if self.b_enc is None else z + self.b_enc

    def activate(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        kind, k = self.architecture.architecture, self.architecture.k or self.d_sae
        if kind == "topk":
            return keep_top(z, k)
        if kind == "batchtopk":
            return keep_top(z.flatten(), k * (z.numel() // self.d_sae)).view_as(z)
        if kind == "groupmax":
            return keep_top(z.unflatten(-1, (k, -1)), 1).flatten(-2)
        if kind == "gated":
            open_gates = z + self.get_parameter("b_gate") > 0
            return (z * self.get_parameter("r_mag").exp() + self.get_parameter("b_mag")).relu() * open_gates
        return z.relu() * (z > self.get_parameter("threshold")) if kind == "jumprelu" else z.relu()


@dataclass(frozen=True)
class Origin:
    """Origin of an SAE and what it reads, as its files say; None for what they leave out."""

    layout: str
    """Library that wrote the files: sae_sweep, SAELens, sparsify, dictionary_learning or the study."""
    folder: Path
    """Where the files are."""
    model: str | None = None
    """Name of the language model."""
    hook: str | None = None
    """Name of the activations, in the library's own words."""
    layer: int | None = None
    """Layer whose `resid_pre` they are, from 0; the output of block i is `resid_pre` of i + 1. None if `hook`
    is None or names other activations."""
    context: int | None = None
    """Tokens per sequence in its training."""


def origin(layout: str, folder: Path, *, model: Any, hook: Any, layer: int | None, context: Any) -> Origin:
    """The origin that a file's values describe; those of another type are left out."""
    return Origin(
        layout,
        Path(os.path.abspath(folder)),
        model if isinstance(model, str) and model else None,
        hook if isinstance(hook, str) and hook else None,
        layer,
        context if type(context) is int and context > 0 else None,
    )


def resid_pre_layer(hook: Any) -> int | None:
    """The layer whose `resid_pre` a hook of TransformerLens is; None for other activations."""
    found = re.fullmatch(r"blocks\.(\d{1,6})\.hook_resid_(pre|post)", hook) if isinstance(hook, str) else None
    return int(found[1]) + (found[2] == "post") if found else None


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Raise what a reader finds missing or odd in the files of an SAE as one line with `file`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise SaeSweepError(f"{file} holds no SAE that can be read: {why}") from error


def renamed(
    weights: Mapping[str, Tensor], names: Mapping[str, str], unused: Set[str] = frozenset()
) -> dict[str, Tensor]:
    """A library's tensors under the names of this one.

    Args:
        weights: as they are in its file.
        names: its name of each tensor, to ours; `name.T` is transposed.
        unused: tensors that may be there and decide nothing at inference.

    Raises:
        ValueError: if a tensor is missing or unknown, or weights are no matrix.
    """
    if missing := sorted(names.keys() - weights.keys()):
        raise ValueError(f"{', '.join(missing)} are missing")
    if odd := sorted(weights.keys() - names.keys() - unused):
        raise ValueError(f"{', '.join(odd)} are no tensors of this architecture")
    matrices = [name for name, ours in names.items() if ours.startswith("W_")]
    if odd := [name for name in matrices if weights[name].ndim != 2]:
        raise ValueError(f"{', '.join(odd)} are no matrices")
    return {
        ours.removesuffix(".T"): weights[name].t() if ours.endswith(".T") else weights[name]
        for name, ours in names.items()
    }


def fitting(
    weights: Mapping[str, Tensor],
    config: ForeignConfig,
    d_in: Any,
    d_sae: Any,
    unused: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """The tensors of an SAE in float32.

    Raises:
        ValueError: if a size is no size, or a tensor is missing, unknown, of another shape, no floating-point
            numbers or not finite.
    """
    if not all(type(size) is int and 0 < size < _LARGEST for size in (d_in, d_sae)):
        raise ValueError(f"d_in and d_sae are {[d_in, d_sae]}")
    _refuse_k(config, d_sae)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(VECTORS[config.architecture], (d_sae,))
    if config.k is not None and "b_enc" not in weights:
        del shapes["b_enc"]
    found = {name: tuple(weights[name].shape) for name in shapes if name in weights}
    if wrong := [name for name, shape in shapes.items() if found.get(name) != shape]:
        raise ValueError(f"{', '.join(wrong)} do not fit d_in={d_in} and d_sae={d_sae}")
    if odd := sorted(weights.keys() - shapes.keys() - unused):
        raise ValueError(f"{', '.join(odd)} are no tensors of architecture={config.architecture}")
    if odd := [name for name in shapes if not weights[name].is_floating_point()]:
        types = sorted({str(weights[name].dtype) for name in odd})
        raise ValueError(f"{', '.join(odd)} hold {', '.join(types)}, not floating-point numbers")
    tensors = {name: weights[name].float() for name in shapes}
    refuse_not_finite(tensors)
    return tensors


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError with the names of tensors that hold NaN or inf."""
    if bad := [name for name, values in tensors.items() if not values.isfinite().all()]:
        raise ValueError(f"{', '.join(bad)} hold NaN or inf")


def flag(cfg: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no of a config, in which null is no; raises ValueError if it is anything else."""
    value = cfg.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}={value!r} is neither true nor false")
    return bool(value)


def _refuse_k(config: ForeignConfig, d_sae: int) -> None:
    k = config.k
    if config.architecture in _WITH_K and (type(k) is not int or not 0 < k <= d_sae):
        raise ValueError(f"k={k!r} is no number of features of {d_sae}")
    if config.architecture == "groupmax" and d_sae % (k or 1):
        raise ValueError(f"{d_sae} features are no {k} equal groups")


def choice(what: str, value: Any, known: Mapping[str, Any]) -> Any:
    """What `known` holds for a value; raises ValueError with the known ones if it holds nothing."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{what}={value!r} is none of {', '.join(known)}")
    return known[value]
