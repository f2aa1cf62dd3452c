"""One W&B run, which may fail without stopping training.

A record that W&B refuses is lost there, and the run goes on; a run that cannot be started, or that loses one
record after the other, goes on without W&B. `history.jsonl` has everything.
"""

import functools
import logging
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sae_sweep.config import TrackingConfig, first_line
from sae_sweep.config.pasted import pasted
from sae_sweep.config.tracking import TAG_LENGTH
from sae_sweep.signals import obeyed
from sae_sweep.tracking.environment import (
    silent_settings,
    wandb_entity,
    wandb_folder,
    wandb_group,
    wandb_mode,
    wandb_project,
    wandb_tags,
)
from sae_sweep.tracking.history import HistoryRecord
from sae_sweep.tracking.records import log_record

if TYPE_CHECKING:
    from wandb import Run, Settings

logger = logging.getLogger(__name__)

_FINISH_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 10.0
_LONGEST_REASON = 200
_MOST_LOST = 10
"""Records lost in a row after which a run goes on without W&B."""
_gave_up_online = threading.Event()
"""Set once W&B could not be reached, so that the other runs of this process do not wait for it again."""


@dataclass(frozen=True)
class WandbSpec:
    """What W&B gets to know about a run before its first record."""

    id: str
    """The same in every launch of the run, so that a later one continues its W&B run."""
    name: str
    """As W&B shows it."""
    sweep: Path
    """Folder of the sweep."""
    tracking: TrackingConfig
    base: Path
    """Relative paths in records start here."""
    config: Mapping[str, Any]
    job_type: str = "train"
    tags: Sequence[str] = ()

    @property
    def kept(self) -> str:
        """Where everything is that W&B gets."""
        return "history.jsonl" if self.job_type == "train" else "analysis/"

    @property
    def folder(self) -> Path:
        return wandb_folder(self.tracking, self.sweep)


def answers(url: str) -> bool:
    """Whether there is a server, for which W&B itself would wait for a minute and a half."""
    try:
        urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@functools.cache
def _say_how_to_sync(folder: Path) -> None:
    logger.info("W&B: offline; to upload the runs: wandb sync %s/wandb/offline-run-*", pasted(folder))


class WandbRun:
    """A W&B run that may fail: `open`, `log` and `close` never raise."""

    def __init__(self, spec: WandbSpec) -> None:
        self._spec = spec
        self._run: Run | None = None
        self._broken = False
        self._lost = self._lost_in_a_row = 0

    def open(self, records: Iterable[HistoryRecord]) -> None:
        """Start, or start over, with the given history; what W&B already has online is not sent again."""
        self.close(failed=True)
        self._attempt("starting", lambda: self._open(records))

    def log(self, record: HistoryRecord) -> None:
        """Send one record of the history; one that W&B refuses is lost."""
        run = self._run
        if run is None or ("artifact" in record and not self._spec.tracking.artifacts):
            return
        try:
            with obeyed():
                log_record(run, record, self._spec.base)
            self._lost_in_a_row = 0
        except Exception as error:  # training goes on, whatever fails in W&B
            self._lose(run, error)

    def _lose(self, run: "Run", error: Exception) -> None:
        self._lost += 1
        self._lost_in_a_row += 1
        if self._lost == 1:
            logger.warning(
                "W&B lost a record of %s (%s); %s has everything",
                *(self._spec.name, first_line(error)[:_LONGEST_REASON], self._spec.kept),
            )
        if self._lost_in_a_row == _MOST_LOST:
            self._give_up(run, f"W&B lost {_MOST_LOST} records of {self._spec.name} in a row")

    def _give_up(self, run: "Run | None", why: str) -> None:
        """Go on without W&B, and finish its run if that is still possible."""
        self._broken = True
        self._run = None
        logger.warning("%s: going on without it; %s has everything", why, self._spec.kept)
        if run is not None:
            with suppress(Exception), obeyed():
                run.finish(exit_code=1)

    def close(self, *, failed: bool) -> None:
        """Finish the run; waits up to five minutes for uploads."""
        run, self._run = self._run, None
        if run is None:
            return
        if self._lost > 1:
            logger.warning("W&B lost %d records of %s", self._lost, self._spec.name)
        self._attempt("finishing", lambda: run.finish(exit_code=int(failed)))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            with obeyed():
                action()
        except Exception as error:  # as in log
            reason = first_line(error)[:_LONGEST_REASON]
            self._give_up(self._run, f"W&B failed while {what} {self._spec.name} ({reason})")

    def _open(self, records: Iterable[HistoryRecord]) -> None:
        tracking = self._spec.tracking
        mode = wandb_mode(tracking)
        if mode == "disabled":
            return
        self._remove_offline_segments()
        self._run = run = self._init_somehow("offline" if _gave_up_online.is_set() else mode)
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        for record in records:
            # the server already has the earlier records of a run that it knows
            if not run.resumed or record["tokens"] >= run.step:
                self.log(record)

    def _init_somehow(self, mode: str) -> "Run":
        if mode == "online":
            try:
                with obeyed():
                    return self._init_online()
            except Exception as error:  # as in log; a run that is tracked offline is better than none
                _gave_up_online.set()
                logger.warning("W&B cannot be reached (%s)", first_line(error)[:_LONGEST_REASON])
                # another id: W&B keeps the first one until the process ends
                run = self._init("offline", f"{self._spec.id}-offline")
        else:
            run = self._init(mode, self._spec.id)
        if run.offline:
            _say_how_to_sync(self._spec.folder)
        return run

    def _init_online(self) -> "Run":
        url = silent_settings().base_url
        if not answers(url):
            raise ConnectionError(f"{url} does not answer")
        return self._init("online", self._spec.id)

    def _init(self, mode: str, id: str) -> "Run":
        import wandb

        silent_settings()  # the run's own settings do not silence signing in
        spec = self._spec
        spec.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=wandb_project(spec.tracking),
            entity=wandb_entity(spec.tracking),
            id=id,
            name=spec.name,
            group=wandb_group(spec.tracking, spec.sweep.name),
            tags=_tags(spec),
            job_type=spec.job_type,
            config=dict(spec.config),
            dir=spec.folder,
            mode=cast(Any, mode),  # W&B itself names the choices if it is none of them
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_quiet_settings(),
        )

    def _remove_offline_segments(self) -> None:
        """Delete earlier offline segments: W&B does not join them, and the new one has the whole history."""
        for segment in (self._spec.folder / "wandb").glob(f"offline-run-*-{self._spec.id}*"):
            shutil.rmtree(segment)


def _tags(spec: WandbSpec) -> list[str]:
    """The run's own tags, cut to what W&B takes, and the user's."""
    own = [tag[:TAG_LENGTH] for tag in spec.tags if tag]
    return list(dict.fromkeys([*own, *wandb_tags(spec.tracking)]))


def _quiet_settings() -> "Settings":
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        symlink=False,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        finish_timeout=_FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )
