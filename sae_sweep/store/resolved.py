"""Values that depend on the machine that trains a run, and are not in its id."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ANY = ("threads",)
"""Values that a resumed run takes over, so that they never differ."""


@dataclass(frozen=True)
class Resolved:
    """Values that change a run's bits although they are not in its id; a resume must find the same.

    Another number of threads, device, attention, backend or LM batch sums in another order, which changes
    the last bits of activations and weights.
    """

    device: str
    """Kind of device: the GPU's name, or `cpu` with its instruction set."""
    lm_dtype: str
    activation_dtype: str
    attention: str
    """Attention of the LM: eager or sdpa."""
    kernels: str
    """Backend of the training step: reference, cpu or triton."""
    lm_batch: int
    """Sequences per LM forward pass."""
    threads: int
    """CPU threads."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def changes_from(self, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Map each name whose value differs from an earlier `as_dict` to the earlier value and this one."""
        return {
            name: (before[name], value)
            for name, value in self.as_dict().items()
            if name in before and name not in _ANY and before[name] != value
        }


@dataclass(frozen=True)
class Conditions:
    """How a run is trained in this launch, and what changed in the course of its training."""

    resolved: Resolved
    mixed: tuple[Mapping[str, Any], ...] = ()
    """One mapping per change: `step`, and for each name that changed the value before and after it."""
    fell_back: Mapping[str, str] = field(default_factory=dict)
    """Why attention or kernels are not the fast ones."""
    job: int | None = None
    """Number of the frozen group whose job trains it; None in the process of the command."""

    def as_status(self) -> dict[str, Any]:
        """Keys of `status.json`."""
        return {
            "resolved": self.resolved.as_dict(),
            "mixed": [dict(change) for change in self.mixed],
            "fell_back": dict(self.fell_back),
            "job": self.job,
        }
