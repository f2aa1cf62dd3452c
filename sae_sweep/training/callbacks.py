"""Lightning callbacks that run after each step: logging, saving, stopping, and progress."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sae_sweep.progress import Progress, shown_means
from sae_sweep.signals import StopRequest
from sae_sweep.training.module import GroupModule


class LogMetrics(Callback):
    """Log each member's metrics as they reach the host; retire finished and diverged members."""

    def __init__(self, group: GroupModule) -> None:
        self._group = group

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._group.publish()
        trainer.should_stop = not self._group.active


class Checkpoints(Callback):
    """Save every member every `every_min` minutes, and when a signal asks to stop."""

    def __init__(self, group: GroupModule, stop: StopRequest, every_min: float) -> None:
        self._group = group
        self._stop = stop
        self._every_s = 60 * every_min
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._stop.signum is not None or time.monotonic() - self._saved >= self._every_s:
            self._group.save()
            self._saved = time.monotonic()
        self._stop.raise_if_requested()


class ShowProgress(Callback):
    """Shows the progress of a group: tokens, tokens/s, time left, and mean loss, L0 and dead features."""

    def __init__(self, group: GroupModule) -> None:
        self._group = group
        self._progress: Progress | None = None
        self._batch = self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        active = self._group.active
        self._batch = active[0].member.run.config.batch
        self._tokens = self._batch * min(t.learner.steps for t in active)
        total = self._batch * max(t.member.run.config.steps for t in active)
        label = f"{len(active)} runs" if len(active) > 1 else "1 run"
        self._progress = Progress(label, total, self._tokens)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._tokens += self._batch
        if self._progress is not None and self._progress.due:
            self._progress.show(self._tokens, shown_means([t.latest for t in self._group.active]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
