"""Trains groups: runs that share LM passes train together, in parts that fit into memory."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sae_sweep import logs
from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.config import ConfigError, ModelConfig, RunConfig, SaeSweepError
from sae_sweep.launch.finish import Finisher
from sae_sweep.launch.lm_use import LmUse
from sae_sweep.launch.streams import StreamMaker, stream_maker
from sae_sweep.plan import Plan
from sae_sweep.signals import Interrupted, StopRequest
from sae_sweep.store import PlannedRun, cache_folder, set_state, unfinished
from sae_sweep.text import TextSource, open_text
from sae_sweep.tracking import open_sink
from sae_sweep.training import (
    GroupSettings,
    GroupTooLargeError,
    Member,
    available_bytes,
    release,
    split,
    train_group,
)

log = logging.getLogger(__name__)


def train_runs(plan: Plan, runs: Sequence[PlannedRun], stop: StopRequest, sharers: int = 1) -> None:
    """Train some runs of the plan, group by group; the caller holds locks on their folders.

    Args:
        plan: defines the groups.
        runs: runs to train.
        stop: handler of stop signals.
        sharers: number of processes that share the machine's memory, this one included.
    """
    models = Models()
    for group in plan.groups():
        stop.raise_if_requested()  # a signal may have arrived while a part failed
        left = [run for run in group if run in runs]
        if left:
            log_files = logs.log_to_files([(run.name, run.folder.log) for run in left])
            with log_files, _mark_cut_short(left), stop.obeyed():
                _Shared.open(plan, left, models, stop).train(left, sharers)


@contextmanager
def _mark_cut_short(runs: Sequence[PlannedRun]) -> Iterator[None]:
    """Record a state for runs that an error (failed) or a signal (pending) cut short."""
    try:
        yield
    except ConfigError:
        raise  # a config problem that only the loaded model reveals
    except Interrupted:
        for run in unfinished(runs):
            set_state(run, "pending")
        raise
    except SaeSweepError as error:
        log.error("%s", error)
        for run in unfinished(runs):
            set_state(run, "failed", error=str(error))


class Models:
    """Caches the last loaded LM; consecutive groups often share it."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._loaded: LanguageModel | None = None

    def get(self, config: RunConfig) -> LanguageModel:
        if self._loaded is None or self._config != config.model:
            self._loaded = None  # free its memory before loading the next
            self._loaded = load_language_model(config.model, pick_device(config.device))
            self._config = config.model
        return self._loaded


@dataclass(frozen=True)
class _Shared:
    """Objects that the runs of a group share."""

    plan: Plan
    lm: LanguageModel
    source: TextSource
    make_stream: StreamMaker
    use: LmUse
    stop: StopRequest

    @classmethod
    def open(cls, plan: Plan, runs: Sequence[PlannedRun], models: Models, stop: StopRequest) -> "_Shared":
        """Open text and model; with `activations=cache`, fill the cache."""
        first, cache = runs[0].config, cache_folder(plan.command.paths.cache)
        source = open_text(first.dataset, cache)
        lm = models.get(first)
        lm.check([run.config.layer for run in runs], first.packing.seq_len)
        use = LmUse(lm)
        make_stream = stream_maker(lm, source, runs, cache)
        use.filled(max(run.config.steps for run in runs))
        return cls(plan, lm, source, make_stream, use, stop)

    def train(self, runs: Sequence[PlannedRun], sharers: int) -> None:
        """Train the runs in parts that fit into memory; a part that runs out of it is split in half."""
        most = self.plan.command.launcher.max_group
        available = available_bytes(self.lm.device, sharers)
        positions = split([run.config for run in runs], self.lm.d_model, available, most)
        parts = deque([runs[position] for position in part] for part in positions)
        if len(parts) > 1:
            log.info("%d runs share an LM pass, but not all fit at once: %d parts", len(runs), len(parts))
        while parts:
            part = parts.popleft()
            try:
                self._train_together(part)
            except GroupTooLargeError as error:
                log.warning("memory ran out with %d SAEs at once (%s): splitting them", len(part), error)
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

    def _train_together(self, runs: Sequence[PlannedRun]) -> None:
        command = self.plan.command
        finisher = Finisher(self.lm, self.source, command.matching.threshold)
        members: list[Member] = []
        try:
            for run in runs:
                members.append(Member(run, open_sink(run, command.tracking, self.plan.folder)))
                set_state(run, "running")
            train_group(
                members,
                self.make_stream,
                d_in=self.lm.d_model,
                settings=GroupSettings(
                    command.tracking.log_every,
                    command.launcher.checkpoint_every_min,
                    cache_folder(command.paths.cache),
                ),
                stop=self.stop,
                on_finished=lambda outcome: finisher.finish(outcome, self.use.record(outcome.member.run)),
            )
        finally:
            for member in members:
                member.sink.finish(failed=True)  # no-op for sinks already closed
