"""One W&B run, which may fail without stopping training.

Whatever goes wrong here (no network, no disk, a wrong key) becomes one warning, and the run goes on without
W&B: `history.jsonl` has everything.
"""

import functools
import logging
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sae_sweep.config import first_line
from sae_sweep.signals import obeyed
from sae_sweep.tracking.history import HistoryRecord
from sae_sweep.tracking.records import log_record

if TYPE_CHECKING:
    from wandb import Run, Settings

logger = logging.getLogger(__name__)

_FINISH_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 10.0
_LONGEST_REASON = 200
_gave_up_online = threading.Event()
"""Set once W&B could not be reached, so that the other runs of this process do not wait for it again."""
_MODES = {"dryrun": "offline", "run": "online"}  # W&B's own former names


@dataclass(frozen=True)
class WandbSpec:
    """What W&B gets to know about a run before its first record."""

    id: str
    """The same in every launch of the run, so that a later one continues its W&B run."""
    name: str
    group: str
    """The sweep."""
    project: str
    entity: str | None
    folder: Path
    """W&B writes to `wandb/` in this folder."""
    base: Path
    """Relative paths in records start here."""
    config: Mapping[str, Any]
    job_type: str = "train"


def wandb_mode() -> str:
    """online, offline or disabled: `WANDB_MODE` if it is set, else online if W&B finds a key."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower()
    if wanted:
        return _MODES.get(wanted, wanted)
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether W&B finds a key or token for its server; asks neither the server nor the user."""
    import wandb

    _silent_settings()
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return True  # one of the wrong form: signing in says what is wrong with it


def _silent_settings() -> "Settings":
    """W&B's settings, from its files and the environment; W&B prints nothing in this process from here on."""
    import wandb

    # an argument of setup would come too late: W&B prints which settings files it reads
    os.environ["WANDB_SILENT"] = "true"
    return wandb.setup().settings


def _answers(url: str) -> bool:
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
    logger.info("W&B: offline; to upload the runs: wandb sync %s/wandb/offline-run-*", folder)


class WandbRun:
    """A W&B run that may fail: `open`, `log` and `close` never raise."""

    def __init__(self, spec: WandbSpec) -> None:
        self._spec = spec
        self._run: Run | None = None
        self._broken = False

    def open(self, records: Iterable[HistoryRecord]) -> None:
        """Start, or start over, with the given history; what W&B already has online is not sent again."""
        self.close(failed=True)
        self._attempt("starting", lambda: self._open(records))

    def log(self, record: HistoryRecord) -> None:
        """Send one record of the history."""
        run = self._run
        if run is not None:
            self._attempt("logging", lambda: log_record(run, record, self._spec.base))

    def close(self, *, failed: bool) -> None:
        """Finish the run; waits up to five minutes for uploads."""
        run, self._run = self._run, None
        if run is not None:
            self._attempt("finishing", lambda: run.finish(exit_code=int(failed)))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            with obeyed():
                action()
        except Exception as error:  # training goes on, whatever fails in W&B
            self._broken = True
            self._run = None
            logger.warning(
                "W&B failed while %s %s (%s): going on without it; history.jsonl has everything",
                *(what, self._spec.name, first_line(error)[:_LONGEST_REASON]),
            )

    def _open(self, records: Iterable[HistoryRecord]) -> None:
        mode = "offline" if _gave_up_online.is_set() else wandb_mode()
        if mode == "disabled":
            return
        self._remove_offline_segments()
        self._run = run = self._init_somehow(mode)
        for record in records:
            # the server already has the earlier records of a run that it knows
            if not run.resumed or record["tokens"] >= run.step:
                log_record(run, record, self._spec.base)

    def _init_somehow(self, mode: str) -> "Run":
        if mode == "online":
            try:
                with obeyed():
                    return self._init_online()
            except Exception as error:  # as in _attempt; a run that is tracked offline is better than none
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
        url = _silent_settings().base_url
        if not _answers(url):
            raise ConnectionError(f"{url} does not answer")
        return self._init("online", self._spec.id)

    def _init(self, mode: str, id: str) -> "Run":
        import wandb

        _silent_settings()  # the run's own settings do not silence signing in
        spec = self._spec
        spec.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=spec.project,
            entity=spec.entity,
            id=id,
            name=spec.name,
            group=spec.group,
            job_type=spec.job_type,
            config=dict(spec.config),
            dir=spec.folder,
            mode=cast(Any, mode),  # W&B itself names the choices if it is none of them
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_quiet_settings(),
        )
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
        return run

    def _remove_offline_segments(self) -> None:
        """Delete earlier offline segments: W&B does not join them, and the new one has the whole history."""
        for segment in (self._spec.folder / "wandb").glob(f"offline-run-*-{self._spec.id}*"):
            shutil.rmtree(segment)


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
        x_disable_stats=True,
        x_disable_meta=True,
        finish_timeout=_FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )
