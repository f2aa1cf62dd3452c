"""What the language model reads for the runs of a command, beside what it would read for each run alone."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from sae_sweep.config import SaeSweepError
from sae_sweep.plan.plan import PlannedRun
from sae_sweep.store import SweepFolder, read_json, write_json

log = logging.getLogger(__name__)


class Reader(Protocol):
    """A language model (`sae_sweep.activations`)."""

    tokens_read: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """LM passes for training; evaluation is not among them."""

    alone: Mapping[str, int] = field(default_factory=dict)
    """Name of a run -> tokens it would have read by itself, from its checkpoint to where it ended; 0 where
    its activations were cached before."""
    passes: int = 0
    """Those that read anything."""
    tokens: int = 0
    seconds: float = 0.0
    """Inside the LM; on a GPU a lower bound."""

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(
            {
                name: self.alone.get(name, 0) + other.alone.get(name, 0)
                for name in {**self.alone, **other.alone}
            },
            self.passes + other.passes,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        text = f"LM: {_passes(self.passes)}, {self.tokens:,} tokens in {self.seconds:.1f} s, "
        text += f"for {len(self.alone)} run{'s' * (len(self.alone) != 1)}"
        if not all(self.alone.values()):
            return text
        return f"{text}; one by one: {_passes(len(self.alone))}, {sum(self.alone.values()):,} tokens"


def _passes(number: int) -> str:
    return f"{number} pass" if number == 1 else f"{number} passes"


class Ledger:
    """Kept while runs are trained; the file of a job's is up to date whenever one of its runs has ended."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: where it is kept for other processes; what it holds (the job was requeued) is added to."""
        self._file = file
        self.total = Reading() if file is None else _load(file)

    @contextmanager
    def filling(self, lm: Reader, runs: Sequence[PlannedRun]) -> Iterator[None]:
        """Count what is read meanwhile to cache the activations of these runs."""
        start, before = (lm.tokens_read, lm.seconds), self.total
        try:
            yield
        finally:
            if read := lm.tokens_read - start[0]:
                longest = max(run.config.steps for run in runs)
                alone = {run.name: round(read * run.config.steps / longest) for run in runs}
                self._keep(before + Reading(alone, 1, read, lm.seconds - start[1]))

    @contextmanager
    def training(self, lm: Reader, runs: Sequence[PlannedRun]) -> Iterator[Callable[[str], None]]:
        """Count what is read meanwhile; what is yielded is to be called with the name of a run that ends."""
        start, before = (lm.tokens_read, lm.seconds), self.total
        ended: dict[str, int] = {}

        def keep() -> None:
            read = lm.tokens_read - start[0]
            alone = {run.name: ended.get(run.name, read) for run in runs}
            self._keep(before + Reading(alone, int(read > 0), read, lm.seconds - start[1]))

        def end(name: str) -> None:
            ended[name] = lm.tokens_read - start[0]
            keep()

        try:
            yield end
        finally:
            keep()

    def _keep(self, total: Reading) -> None:
        self.total = total
        if self._file is not None:
            try:
                write_json(self._file, asdict(total))
            except SaeSweepError as error:  # no reason to lose runs
                log.warning("the LM's passes are not counted: %s", error)


def ledger_file(folder: SweepFolder, number: int) -> Path:
    """Of the job that trains a frozen group."""
    return folder.jobs / f"{number}_lm.json"


def read_ledgers(folder: SweepFolder, numbers: Iterable[int]) -> Reading:
    """What the jobs of some frozen groups have read, as far as they have told."""
    return sum((_load(ledger_file(folder, number)) for number in numbers), Reading())


def tell(total: Reading) -> None:
    """Log it, where anything was trained."""
    if total.alone:
        log.info("%s", total)


def _load(file: Path) -> Reading:
    if not file.exists():
        return Reading()
    try:
        return Reading(**read_json(file))
    except (SaeSweepError, TypeError) as error:
        log.warning("%s: the LM's passes are not counted: %s", file, error)
        return Reading()
