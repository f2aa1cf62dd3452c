"""Architecture configs, one class per architecture."""

from dataclasses import dataclass
from typing import ClassVar

from sae_sweep.config.checks import INT32, below_1, coefficient, count, fraction, number_problems, positive
from sae_sweep.config.plain import compact


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
        """All problems of its keys, given a dictionary of `d_sae` features (None: not yet known)."""
        del d_sae
        return [
            problem if name in self.uses else f"architecture.{problem}"
            for name, problem in number_problems(self).items()
        ]


@dataclass(frozen=True)
class TopKConfig(ArchitectureConfig):
    """TopK (Gao et al. 2024, arXiv 2406.04093)."""

    kind: ClassVar[str] = "topk"
    uses: ClassVar[tuple[str, ...]] = ("k",)
    k: int = count(16, most=INT32)
    """Active features per token."""
    aux_coefficient: float = coefficient(1 / 32)
    """Weight of AuxK, the loss that revives dead features."""

    @property
    def sparsity_label(self) -> str:
        return f"k{self.k}"

    def problems(self, d_sae: int | None) -> list[str]:
        found = super().problems(d_sae)
        if d_sae is not None and "k" not in number_problems(self) and self.k > d_sae:
            found.append(f"k={self.k} is above d_sae={d_sae}: lower k or raise dictionary")
        return found


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    """BatchTopK (Bussmann et al. 2024, arXiv 2412.06410)."""

    kind: ClassVar[str] = "batchtopk"
    threshold_momentum: float = below_1(0.99)
    """Momentum of the running mean of the batch minimum, which becomes the inference threshold."""


@dataclass(frozen=True)
class JumpReLUConfig(ArchitectureConfig):
    """JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    kind: ClassVar[str] = "jumprelu"
    uses: ClassVar[tuple[str, ...]] = ("l0_coefficient",)
    l0_coefficient: float = coefficient(0.0018)
    """Weight of L0 against the mean-over-d_in squared error of the normalised input.

    Thresholds settle near sqrt(coefficient x d_in): scale it with 1 / d_in."""
    bandwidth: float | None = positive(None)
    """Width of the straight-through kernel, in units of normalised pre-activations; null: the preset's."""
    initial_threshold: float | None = positive(None)
    """Initial threshold of every feature, in units of normalised pre-activations; null: the preset's."""
    warmup_fraction: float | None = fraction(None)
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l0c{compact(self.l0_coefficient)}"


@dataclass(frozen=True)
class ReLUConfig(ArchitectureConfig):
    """ReLU with an L1 penalty (Bricken et al. 2023), unit-norm decoder rows."""

    kind: ClassVar[str] = "relu"
    uses: ClassVar[tuple[str, ...]] = ("l1_coefficient",)
    l1_coefficient: float = coefficient(0.002)
    """Weight of L1 against the mean-over-d_in squared error of the normalised input.

    It shrinks every active feature by about coefficient x d_in / 2: scale it with 1 / d_in."""
    warmup_fraction: float | None = fraction(None)
    """Share of the steps over which the coefficient rises from 0 to its value; null: the preset's."""

    @property
    def sparsity_label(self) -> str:
        return f"l1c{compact(self.l1_coefficient)}"


ARCHITECTURES: dict[str, type[ArchitectureConfig]] = {
    cls.kind: cls for cls in (TopKConfig, BatchTopKConfig, JumpReLUConfig, ReLUConfig)
}

SPARSITY_KEYS = tuple(dict.fromkeys(key for cls in ARCHITECTURES.values() for key in cls.uses))
"""Architecture keys with a short name on the command line: `k=32` is `architecture.k=32`."""


def short_key(key: str) -> str:
    """Shorten a sparsity key, `architecture.k` -> `k`; return other keys unchanged."""
    head, _, rest = key.partition(".")
    return rest if head == "architecture" and rest in SPARSITY_KEYS else key
