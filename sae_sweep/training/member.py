"""What goes into a group and what comes out of it."""

from dataclasses import dataclass

from sae_sweep.config import Config
from sae_sweep.saes import SAE
from sae_sweep.store import RunFolder
from sae_sweep.training.sink import MetricSink


@dataclass(frozen=True)
class Member:
    """One run, as the caller hands it to a group."""

    config: Config
    run_id: str
    name: str
    folder: RunFolder
    """Its checkpoint lives here; nothing else of the folder is touched."""
    sink: MetricSink
    """Gets every logged metric; the caller closes it."""


@dataclass(frozen=True)
class Outcome:
    """How the training of one member ended."""

    member: Member
    sae: SAE | None
    """The trained SAE on its device; None where training never began."""
    failed: str | None
    """One line that says what went wrong, or None."""
    seconds: float
    """Wall time in its group until its training ended, that of earlier launches included."""
    tokens: int
    """SAE inputs seen, those of earlier launches included."""
