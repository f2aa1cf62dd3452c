"""Lightning callbacks that run after each step: logging, saving, stopping, and the progress bar."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from sae_sweep.signals import StopRequest
from sae_sweep.training.module import GroupModule
from sae_sweep.training.trainee import Trainee


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


class Progress(Callback):
    """Progress bar of a group: tokens, tokens/s, time left, and mean loss, L0 and dead features."""

    def __init__(self, group: GroupModule) -> None:
        self._group = group
        self._bar: tqdm | None = None
        self._batch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = self._group.active[0].member.run.config.batch
        self._bar = tqdm(
            total=self._batch * max(t.member.run.config.steps for t in self._group.active),
            initial=self._batch * min(t.learner.steps for t in self._group.active),
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=None,  # disabled if stderr is not a terminal
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix(_means(self._group.active), refresh=False)
            self._bar.update(self._batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _means(trainees: Sequence[Trainee]) -> dict[str, str]:
    latest = [t.latest for t in trainees if t.latest]
    return {
        label: f"{sum(values[name] for values in latest) / len(latest):.4g}"
        for label, name in (("loss", "loss"), ("L0", "l0"), ("dead", "dead"))
        if latest
    }
