"""`task=train`: every run of the plan that is not done yet, group by group."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from sae_sweep import logs
from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.config import Config, ConfigError, Interrupted, ModelConfig, SaeSweepError
from sae_sweep.launch.finish import Finisher
from sae_sweep.launch.ledger import Ledger, tell
from sae_sweep.launch.streams import StreamMaker, stream_maker
from sae_sweep.plan.plan import Plan, PlannedRun
from sae_sweep.store import cache_folder, hold
from sae_sweep.store.status import freeze, provenance, report_failed, set_state, state, unsettled
from sae_sweep.text import TextSource, open_text
from sae_sweep.tracking import open_sink
from sae_sweep.training import (
    GroupTooLargeError,
    Member,
    Outcome,
    available_bytes,
    release,
    split,
    train_group,
)

log = logging.getLogger(__name__)


def train(plan: Plan) -> int:
    """Train what is not done; returns how many runs of the plan failed.

    Raises:
        SaeSweepError: if the sweep's folder holds another plan, or a run's is held by another process or
            holds another run.
        Interrupted: after everything was saved, if a signal asked to stop.
    """
    plan.refuse_another()
    with ExitStack() as stack:
        for run in plan.runs:
            stack.enter_context(hold(run.folder))
            freeze(run)
        plan.save()
        waiting = [run for run in plan.runs if state(run.folder) != "done"]
        log.info(
            "%s: %d runs, %d already done", plan.folder.root, len(plan.runs), len(plan.runs) - len(waiting)
        )
        for run in waiting:
            set_state(run, "pending")
        ledger = Ledger()
        train_groups(plan, waiting, ledger)
        tell(ledger.total)
    return report_failed(plan.runs) + len(unsettled(plan.runs))


def train_groups(plan: Plan, runs: Sequence[PlannedRun], ledger: Ledger) -> None:
    """Train these runs of the plan, group by group; the caller holds their folders.

    Args:
        ledger: counts what the LM reads.
    """
    models = Models()
    for group in plan.groups():
        _train_group(plan, [run for run in group if run in runs], models, ledger)


class Models:
    """The language model in hand: groups that follow each other often read the same one."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._loaded: LanguageModel | None = None

    def get(self, config: Config) -> LanguageModel:
        if self._loaded is None or self._config != config.model:
            self._loaded = None  # before the next one takes its memory
            self._loaded = load_language_model(config.model, pick_device(config.device))
            self._config = config.model
        return self._loaded


def _train_group(plan: Plan, runs: Sequence[PlannedRun], models: Models, ledger: Ledger) -> None:
    if not runs:
        return
    with logs.log_to_files([(run.name, run.folder.log) for run in runs]):
        try:
            _train_members(plan, runs, models, ledger)
        except ConfigError:
            raise  # the model, once loaded, showed what the config alone could not
        except (Interrupted, KeyboardInterrupt):
            for run in unsettled(runs):
                set_state(run, "pending")
            raise
        except SaeSweepError as error:
            log.error("%s", error)
            for run in unsettled(runs):
                set_state(run, "failed", error=str(error))


def _train_members(plan: Plan, runs: Sequence[PlannedRun], models: Models, ledger: Ledger) -> None:
    shared = runs[0].config
    source = open_text(shared.dataset, cache_folder(shared.paths.cache))
    lm = models.get(shared)
    lm.check([run.config.layer for run in runs], shared.packing.seq_len)
    before = lm.tokens_read, lm.seconds
    with ledger.filling(lm, runs):
        make_stream = stream_maker(lm, source, runs)
    sharers = (shared.launcher.workers or 2) if shared.launcher.cluster == "local" else 1
    available = available_bytes(lm.device, sharers)
    parts = split([run.config for run in runs], lm.d_model, available, shared.launcher.max_group)
    if len(parts) > 1:
        log.info("%d runs share an LM pass, but not all fit at once: %d parts", len(runs), len(parts))
    for part in parts:
        _train_part(plan, [runs[position] for position in part], lm, source, make_stream, ledger)
    log.info(
        "%s read %s tokens in %.1f s for %d runs, which train on %s tokens together",
        *(lm.name, f"{lm.tokens_read - before[0]:,}", lm.seconds - before[1], len(runs)),
        f"{sum(run.config.tokens for run in runs):,}",
    )


def _train_part(
    plan: Plan,
    runs: Sequence[PlannedRun],
    lm: LanguageModel,
    source: TextSource,
    make_stream: StreamMaker,
    ledger: Ledger,
) -> None:
    """Train runs side by side; if memory runs out, what is left of them goes on in halves."""
    try:
        _train_together(plan, runs, lm, source, make_stream, ledger)
        return
    except GroupTooLargeError as error:
        log.warning("memory ran out with %d SAEs side by side (%s): going on in halves", len(runs), error)
    release(lm.device)
    left = unsettled(runs)
    middle = (len(left) + 1) // 2
    for half in (left[:middle], left[middle:]):
        if half:
            _train_part(plan, half, lm, source, make_stream, ledger)


def _train_together(
    plan: Plan,
    runs: Sequence[PlannedRun],
    lm: LanguageModel,
    source: TextSource,
    make_stream: StreamMaker,
    ledger: Ledger,
) -> None:
    finisher = Finisher({run.name: run for run in runs}, lm, source)
    with ExitStack() as stack:
        members = [_member(plan, run, stack) for run in runs]
        ended = stack.enter_context(ledger.training(lm, runs))

        def finish(outcome: Outcome) -> None:
            ended(outcome.member.name)  # before its status says so to a command that waits for the job
            finisher(outcome)

        train_group(members, make_stream, d_in=lm.d_model, on_finished=finish)


def _member(plan: Plan, run: PlannedRun, stack: ExitStack) -> Member:
    sink = open_sink(
        run.config,
        run_id=run.run_id,
        name=run.name,
        sweep=plan.sweep,
        folder=run.folder,
        wandb_folder=plan.folder.root,
        provenance=provenance(run),
    )
    stack.callback(sink.finish, failed=True)  # of no effect on those that the finisher closed
    set_state(run, "running")
    return Member(config=run.config, run_id=run.run_id, name=run.name, folder=run.folder, sink=sink)
