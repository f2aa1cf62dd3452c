"""A group's members, how their training ended, and the protocol of what their metrics go to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from sae_sweep.saes import SAE
from sae_sweep.store import PlannedRun


class MetricSink(Protocol):
    """Where the metrics of one run go: the local history, W&B, or both."""

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        """Log numbers at `tokens` SAE inputs."""

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        """Log a histogram: `counts` of length n, `edges` of length n + 1."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the final values of the run."""

    def image(self, name: str, path: Path) -> None:
        """Log a figure that is on disk."""

    def artifact(self, name: str, folder: Path) -> None:
        """Keep the files of `folder` as a versioned artifact (the trained SAE)."""

    def mark(self) -> int:
        """How much has been logged; kept in a checkpoint, for `rewind`."""
        ...

    def rewind(self, mark: int) -> None:
        """Begin, having logged what was logged up to `mark` (0: nothing): the rest will be logged again."""

    def finish(self, *, failed: bool) -> None:
        """Close; nothing is logged afterwards. No-op if closed already."""


class Member(NamedTuple):
    """The planned run with its sink."""

    run: PlannedRun
    """Training touches nothing in its folder except the checkpoint."""
    sink: MetricSink
    """Receives every logged metric; the caller closes it."""


class GroupSettings(NamedTuple):
    """What a command says about the training of a group; it moves no weight."""

    log_every: int = 50
    """Steps between two logged points."""
    checkpoint_every_min: float = 5.0
    """Minutes between two checkpoints."""
    cache: Path | None = None
    """Folder that keeps compiled kernels; None: `sae_sweep` in the user's cache folder."""


@dataclass(frozen=True)
class Outcome:
    """How the training of one member ended."""

    member: Member
    sae: SAE | None
    """The trained SAE on its device; None if training never began."""
    failed: str | None
    """One line that says what went wrong, or None."""
    seconds: float
    """Wall time in its group until its training ended, earlier launches included."""
    tokens: int
    """SAE inputs seen, earlier launches included."""
