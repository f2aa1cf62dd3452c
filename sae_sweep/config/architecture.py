"""Architecture configs, one class per architecture."""

from dataclasses import dataclass
from typing import ClassVar

from sae_sweep.config.checks import at_least, fraction


@dataclass(frozen=True)
class ArchitectureConfig:
    """Base class of the architecture configs."""

    kind: ClassVar[str] = ""
    uses: ClassVar[tuple[str, ...]] = ()
    """Keys of `SPARSITY_KEYS` that the architecture has."""

    @property
    def sparsity_label(self) -> str:
        """Sparsity in a run's name, for example `k16`."""
        raise NotImplementedError

    def problems(self, d_sae: int | None) -> list[str]:
        """Contradictions, given a dictionary of `d_sae` features (None: not yet known)."""
        del d_sae
        return []


@dataclass(frozen=True)
class TopKConfig(ArchitectureConfig):
    """TopK (Gao et al. 2024, arXiv 2406.04093)."""

    kind: ClassVar[str] = "topk"
    uses: ClassVar[tuple[str, ...]] = ("k",)
    k: int = 16
    """Active features per token."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK, the loss that revives dead features."""

    @property
    def sparsity_label(self) -> str:
        return f"k{self.k}"

    def problems(self, d_sae: int | None) -> list[str]:
        found: list[str] = []
        at_least(found, "k", self.k, 1)
        at_least(found, "architecture.aux_coefficient", self.aux_coefficient, 0)
        if d_sae is not None and self.k > d_sae:
            found.append(f"k={self.k} is above d_sae={d_sae}: lower k or raise dictionary")
        return found


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK (Bussmann et al. 2024, arXiv 2412.06410)."""

    kind: ClassVar[str] = "batchtopk"
    threshold_momentum: float = 0.99
    """Momentum of the running mean of the batch minimum, which becomes the inference threshold."""

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        if not 0 <= self.threshold_momentum < 1:
            found.append(f"architecture.threshold_momentum={self.threshold_momentum}: must be in [0, 1)")
        return found


@dataclass(frozen=True)
class JumpReLUConfig(ArchitectureConfig):
    """JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    kind: ClassVar[str] = "jumprelu"
    uses: ClassVar[tuple[str, ...]] = ("l0_coefficient",)
    l0_coefficient: float = 0.0018
    """Weight of L0 against the mean-over-d_in squared error of the normalised input.

    Thresholds settle near sqrt(coefficient x d_in): scale it with 1 / d_in."""
    bandwidth: float | None = None
    """Width of the straight-through kernel, in units of normalised pre-activations; null: the preset's."""
    initial_threshold: float | None = None
    """Initial threshold of every feature, in units of normalised pre-activations; null: the preset's."""
    warmup_fraction: float | None = None
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l0c{self.l0_coefficient:g}"

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        at_least(found, "l0_coefficient", self.l0_coefficient, 0)
        fraction(found, "architecture.warmup_fraction", self.warmup_fraction or 0)
        for key in ("bandwidth", "initial_threshold"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                found.append(f"architecture.{key}={getattr(self, key)}: must be above 0")
        return found


@dataclass(frozen=True)
class ReLUConfig(ArchitectureConfig):
    """ReLU with an L1 penalty (Bricken et al. 2023), unit-norm decoder rows."""

    kind: ClassVar[str] = "relu"
    uses: ClassVar[tuple[str, ...]] = ("l1_coefficient",)
    l1_coefficient: float = 0.002
    """Weight of L1 against the mean-over-d_in squared error of the normalised input.

    It shrinks every active feature by about coefficient x d_in / 2: scale it with 1 / d_in."""
    warmup_fraction: float | None = None
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l1c{self.l1_coefficient:g}"

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        at_least(found, "l1_coefficient", self.l1_coefficient, 0)
        fraction(found, "architecture.warmup_fraction", self.warmup_fraction or 0)
        return found


ARCHITECTURES: dict[str, type[ArchitectureConfig]] = {
    cls.kind: cls for cls in (TopKConfig, BatchTopKConfig, JumpReLUConfig, ReLUConfig)
}

SPARSITY_KEYS = tuple(dict.fromkeys(key for cls in ARCHITECTURES.values() for key in cls.uses))
"""Architecture keys with a short name on the command line: `k=32` is `architecture.k=32`."""


def short_key(key: str) -> str:
    """Shorten a sparsity key, `architecture.k` -> `k`; return other keys unchanged."""
    head, _, rest = key.partition(".")
    return rest if head == "architecture" and rest in SPARSITY_KEYS else key
