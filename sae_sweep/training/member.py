"""Members of a group, their outcomes, and the protocol of their metric sinks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sae_sweep.saes import SAE
from sae_sweep.store import PlannedRun
from sae_sweep.store.resolved import Conditions


class MetricSink(Protocol):
    """Receives the metrics of one run, for the local history, W&B, or both."""

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        """Log numbers at `tokens` SAE inputs."""

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        """Log a histogram at the last logged point: `counts` of length n, `edges` of length n + 1."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the final values of the run."""

    def image(self, name: str, path: Path) -> None:
        """Log a figure from a file."""

    def artifact(self, name: str, folder: Path) -> None:
        """Upload the files of `folder` as a versioned artifact (the trained SAE)."""

    def mark(self) -> Any:
        """Return how much has been logged as JSON values, to be stored in a checkpoint for `rewind`."""

    def rewind(self, mark: Any) -> None:
        """Start logging: keep what was logged up to `mark` (None: nothing) and drop the rest.

        Raises:
            SaeSweepError: if what was logged up to there is damaged.
        """

    def finish(self, *, failed: bool) -> None:
        """Close the sink; a no-op if it is already closed."""


class Member(NamedTuple):
    """A planned run, its metric sink, and how it is trained in this launch."""

    run: PlannedRun
    """The run; training writes only the checkpoint into its folder."""
    sink: MetricSink
    """Receives every logged metric; the caller closes it."""
    conditions: Conditions
    """What `auto` became; checkpoints carry it."""


class GroupSettings(NamedTuple):
    """Settings of a command for the training of a group, without effect on the weights."""

    log_every: int
    """Steps between two logged points."""
    checkpoint_every_min: float
    """Minutes between two checkpoints."""
    cache: Path | None = None
    """Folder that keeps compiled kernels; None: `sae_sweep` in the user's cache folder."""
    histograms: int = 0
    """Times at which histograms are logged, evenly spread over the training."""


@dataclass(frozen=True)
class Outcome:
    """Result of the training of one member."""

    member: Member
    sae: SAE | None
    """The trained SAE on its device; None if training never began."""
    failed: str | None
    """One-line error message, or None."""
    seconds: float
    """Wall time until the member's training ended, earlier launches included."""
    tokens: int
    """SAE inputs seen, earlier launches included."""
