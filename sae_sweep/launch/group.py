"""Trains groups: runs that share LM passes train together, in parts that fit into memory."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sae_sweep import logs
from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.activations.synthetic import load_synthetic
from sae_sweep.config import ConfigError, DatasetConfig, ModelConfig, RunConfig, SyntheticDataset
from sae_sweep.launch.conditions import by_threads, conditions, cpu_threads, resolve
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.finish import Finisher, close, is_trained
from sae_sweep.launch.labels import run_labels
from sae_sweep.launch.lm_use import LmUse
from sae_sweep.launch.streams import StreamMaker, stream_maker
from sae_sweep.plan import Plan
from sae_sweep.signals import Interrupted, StopRequest
from sae_sweep.store import PlannedRun, cache_folder, fail, read_status, set_state, settle, unfinished
from sae_sweep.store.resolved import Conditions
from sae_sweep.text import Text, held_out_sequences, open_text
from sae_sweep.tracking import RunLabels, RunSink, open_sink
from sae_sweep.training import (
    GroupSettings,
    GroupTooLargeError,
    Member,
    border,
    device_failed,
    explain,
    free_bytes,
    refuse_too_large,
    release,
    split,
    train_group,
)

log = logging.getLogger(__name__)


def train_runs(
    plan: Plan, runs: Sequence[PlannedRun], stop: StopRequest, sharers: int = 1, job: int | None = None
) -> None:
    """Train some runs of the plan, group by group; the caller holds locks on their folders.

    Args:
        plan: defines the groups.
        runs: runs to train.
        stop: handler of stop signals.
        sharers: number of processes that share the machine's memory, this one included.
        job: number of the frozen group, in a job.
    """
    models = Models()
    shared = _Command(plan, models, stop, run_labels(plan), sharers, job)
    for group in plan.groups():
        stop.raise_if_requested()
        if not _train_parts(shared, [run for run in group if run in runs]):
            log.error("the groups that follow are left to the same command, in a process of its own")
            return


def _train_parts(command: "_Command", runs: Sequence[PlannedRun]) -> bool:
    """Train the runs of a group by their numbers of threads; returns whether the device is still usable."""
    with ExitStack() as files:
        ready = [run for run in runs if _opened(run, files)]
        parts: dict[int, list[PlannedRun]] = {}
        failed: list[Exception] = []
        with _group_border(ready, command.stop, failed.append):
            parts = by_threads(ready, command.plan.command.launcher)
        for threads, part in parts.items():
            command.stop.raise_if_requested()  # a signal may have arrived while a part failed
            with _group_border(part, command.stop, failed.append), cpu_threads(threads):
                _train_group(command, part)
            if any(map(device_failed, failed)):
                return False
    return True


class _Command(NamedTuple):
    """What all groups of a command share."""

    plan: Plan
    models: "Models"
    stop: StopRequest
    labels: Mapping[str, RunLabels]
    """By run id."""
    sharers: int
    job: int | None

    @property
    def cache(self) -> Path:
        return cache_folder(self.plan.command.paths.cache)

    def sink(self, run: PlannedRun, conditions: Conditions) -> RunSink:
        labels = self.labels[run.run_id]
        return open_sink(run, self.plan.command.tracking, self.plan.folder, conditions, labels)


def _train_group(command: _Command, runs: Sequence[PlannedRun]) -> None:
    """Train the runs of a group, and evaluate those again that are trained."""
    first = runs[0].config
    source = open_text(first.dataset, command.cache)
    refuse_other_content(runs[0], command.cache)
    lm = command.models.get(first)
    command.stop.raise_if_requested()  # a library may have swallowed it while the model was loaded
    accepted = {run.name: found for run in runs if (found := _accepted(run, lm, command))}
    ready = [run for run in runs if run.name in accepted]
    trained = [run for run in ready if is_trained(run)]
    finisher = Finisher(lm, source, command.plan.command.matching.threshold)
    for run in trained:
        command.stop.raise_if_requested()
        with _run_border(run):
            finisher.evaluate_again(run, command.sink(run, accepted[run.name]))
    rest = _fitting([run for run in ready if run not in trained], lm, command.sharers)
    if rest:
        _Shared.open(command, rest, source, lm, accepted).train(rest)


@contextmanager
def _group_border(
    runs: Sequence[PlannedRun], stop: StopRequest, failed: Callable[[Exception], None]
) -> Iterator[None]:
    """The border of a group: an error inside fails its unfinished runs, a stop leaves them pending."""
    try:
        try:
            with stop.obeyed():
                yield
        except Exception as error:
            fail(runs, error, explain(error, "take a machine with more memory, or a smaller model"))
            failed(error)
    except Interrupted:
        settle(runs, "pending")
        raise


@contextmanager
def _run_border(run: PlannedRun) -> Iterator[None]:
    """The border of a run before its training: an error inside fails it."""

    def mark(line: str) -> None:
        log.error("%s: %s", run.name, line)
        settle([run], "failed", error=line)

    with border(run.name, mark, remedy="take a machine with more memory", together=False):
        yield


def _accepted(run: PlannedRun, lm: LanguageModel, command: _Command) -> Conditions | None:
    """How the run is trained; None if it failed, because the model or this machine does not suit it."""
    with _run_border(run):
        lm.check([run.config.layer], run.config.packing.seq_len)
        here = resolve(lm, run.config, command.cache)  # the runs of a group may differ in their backend
        return conditions(run, here, command.plan.command.launcher, command.job)
    return None


def _fitting(runs: Sequence[PlannedRun], lm: LanguageModel, sharers: int) -> list[PlannedRun]:
    """The runs that memory can hold; the others fail before a cache is filled for them."""
    free = free_bytes(lm.device, sharers) if runs else []
    return [run for run in runs if _fits_alone(run, lm, free)]


def _fits_alone(run: PlannedRun, lm: LanguageModel, free: Sequence[int]) -> bool:
    """Whether memory can hold the run; if not, it fails before it is trained."""
    with _run_border(run):
        if problems := run.config.size_problems(lm.d_model):
            raise ConfigError(problems)
        refuse_too_large(run.config, lm.sizes, free)
        return True
    return False


def _opened(run: PlannedRun, files: ExitStack) -> bool:
    """Open the run's log, and see that its status can be read; if that fails, the run does."""
    with _run_border(run):
        files.enter_context(logs.log_to_files([(run.name, run.folder.log)]))
        read_status(run.folder)
        return True
    return False


class Models:
    """Caches the last loaded LM; consecutive groups often share it."""

    def __init__(self) -> None:
        self._key: tuple[ModelConfig, DatasetConfig | None, str] | None = None
        self._loaded: LanguageModel | None = None

    def get(self, config: RunConfig) -> LanguageModel:
        synthetic = config.dataset if isinstance(config.dataset, SyntheticDataset) else None
        key = config.model, synthetic, config.device
        if self._loaded is None or self._key != key:
            self._loaded = None  # free its memory before loading the next
            device = pick_device(config.device)
            if synthetic is None:
                self._loaded = load_language_model(config.model, device)
            else:
                self._loaded = load_synthetic(config, device)
            self._key = key
        return self._loaded


@dataclass(frozen=True)
class _Shared:
    """Objects that the runs of a group share."""

    command: _Command
    lm: LanguageModel
    source: Text
    make_stream: StreamMaker
    use: LmUse
    conditions: Mapping[str, Conditions]
    """How each run is trained, by its name."""

    @classmethod
    def open(
        cls,
        command: _Command,
        runs: Sequence[PlannedRun],
        source: Text,
        lm: LanguageModel,
        accepted: Mapping[str, Conditions],
    ) -> "_Shared":
        """See that there is held-out text; with `activations=cache`, fill the cache."""
        if source.summary:
            logs.note(source.summary)
        held_out_sequences(source, runs[0].config.packing, lm.tokenizer, tokens=1)
        use = LmUse(lm)
        resolved = accepted[runs[0].name].resolved
        make_stream = stream_maker(lm, source, runs, command.cache, resolved)
        use.filled(max(run.config.steps for run in runs))
        return cls(command, lm, source, make_stream, use, accepted)

    def train(self, runs: Sequence[PlannedRun]) -> None:
        """Train the runs in parts that fit into memory; a part that runs out of it is split in half."""
        most = self.command.plan.command.launcher.max_group
        free = free_bytes(self.lm.device, self.command.sharers)
        positions = split([run.config for run in runs], self.lm.sizes, free, most)
        parts = deque([runs[position] for position in part] for part in positions)
        if len(parts) > 1:
            log.info("%d runs share an LM pass, but not all fit at once: %d parts", len(runs), len(parts))
        while parts:
            part = parts.popleft()
            if not self._fits(part):
                self.command.stop.raise_if_requested()
                release(self.lm.device)
                left = unfinished(part)
                middle = (len(left) + 1) // 2
                parts.extendleft(half for half in (left[middle:], left[:middle]) if half)
            self.use.begin()
        tokens, seconds = self.use.total()
        log.info(
            "%s read %s tokens in %.1f s for %d runs, which train on %s tokens together",
            *(self.lm.name, f"{tokens:,}", seconds, len(runs)),
            f"{sum(run.config.tokens for run in runs):,}",
        )

    def _fits(self, part: Sequence[PlannedRun]) -> bool:
        """Train a part; returns False if memory ran out, once the error and what its frames hold are gone."""
        try:
            self._train_together(part)
        except GroupTooLargeError as error:
            log.warning("memory ran out with %d SAEs at once (%s): splitting them", len(part), error)
            return False
        return True

    def _train_together(self, runs: Sequence[PlannedRun]) -> None:
        command = self.command.plan.command
        together = len(runs) > 1
        finisher = Finisher(self.lm, self.source, command.matching.threshold, together=together)
        members: list[Member] = []
        try:
            for run in runs:
                with _run_border(run):
                    of_run = self.conditions[run.name]
                    set_state(run, "running", **of_run.as_status())
                    members.append(Member(run, self.command.sink(run, of_run), of_run))
            if not members:
                return
            train_group(
                members,
                self.make_stream,
                d_in=self.lm.d_model,
                settings=GroupSettings(
                    command.tracking.log_every,
                    command.launcher.checkpoint_every_min,
                    self.command.cache,
                    command.tracking.histograms,
                ),
                stop=self.command.stop,
                on_finished=lambda outcome: finisher.finish(outcome, self.use.record(outcome.member.run)),
            )
        finally:
            for member in members:
                close(member.sink, member.run, failed=True)  # no-op for sinks already closed
