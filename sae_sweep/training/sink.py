"""The protocol of what metrics go to; rooms above hand it down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


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
        """Close; nothing is logged afterwards."""
