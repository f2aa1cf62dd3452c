"""The LightningModule of a group: every SAE trains on each batch, up to its own budget."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule

from sae_sweep import logs
from sae_sweep.signals import StopRequest
from sae_sweep.store import log_traceback
from sae_sweep.training.data import Batch
from sae_sweep.training.faults import GroupTooLargeError, border
from sae_sweep.training.member import Outcome
from sae_sweep.training.trainee import Trainee

_LESS_MEMORY = "lower dictionary or batch"
"""Remedy if memory runs out for a member that is alone."""


class GroupModule(LightningModule):
    """Trains a group with manual optimisation; each learner has its own Adam, hidden from Lightning.

    The SAEs are not submodules, because Lightning would move them to the CPU when `fit` ends.
    """

    def __init__(
        self, on_finished: Callable[[Outcome], None] | None = None, stop: StopRequest | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.active: list[Trainee] = []
        """Members in training."""
        self.outcomes: dict[str, Outcome] = {}
        """Outcomes of retired members, by run name."""
        self._on_finished = on_finished
        self._stop = stop

    def configure_optimizers(self) -> list[None]:
        return []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch, which is already on the device; Lightning's own search takes 0.2 ms per step."""
        del device, dataloader_idx
        return batch

    def each(self, call: Callable[[Trainee], None]) -> None:
        """Do something with every active member; an exception fails the member that it ends.

        Raises:
            GroupTooLargeError: if memory ran out with several members.
            RuntimeError: if the device failed.
        """
        for trainee in self.active:
            self._guard(trainee, call)

    def _guard(self, trainee: Trainee, call: Callable[[Trainee], None]) -> None:
        together = len(self.active) > 1
        with border(trainee.member.run.name, trainee.fail, remedy=_LESS_MEMORY, together=together):
            call(trainee)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        self.each(lambda trainee: trainee.train(batch))

    def publish(self) -> None:
        """Log available metrics; retire members that failed or reached their budget.

        Members at their budget are all saved first: handling an outcome can take minutes, and a stop request
        is obeyed between two outcomes.

        Raises:
            Interrupted: if a signal has arrived, once every member is saved.
        """
        self.each(_publish)
        through = [t for t in self.active if t.failed is not None or t.steps_left <= 0]
        for trainee in through:
            if self._stop is not None and self._stop.signum is not None:
                self.save()
                self._stop.raise_if_requested()
            self.retire(trainee)

    def retire(self, trainee: Trainee) -> None:
        """Remove a member from training and report its outcome."""
        self.active.remove(trainee)
        trainee.learner.sae.zero_grad(set_to_none=True)  # gradients are as large as the SAE itself
        self.report(trainee.outcome())

    def report(self, outcome: Outcome) -> None:
        self.outcomes[outcome.member.run.name] = outcome
        if self._on_finished is not None:
            self._on_finished(outcome)

    def fail(self, error: Exception, line: str, layer: int | None = None) -> None:
        """Fail the active members of a layer, or all active members if `layer` is None.

        The caller has said why; the line of each of several members goes to its log only.
        """
        concerned = [t for t in self.active if layer in (None, t.member.run.config.layer)]
        for trainee in concerned:
            with logs.only_for(trainee.member.run.name, on_terminal=len(concerned) == 1):
                log_traceback(error)
                trainee.fail(line)
            self.retire(trainee)

    def save(self) -> None:
        """Write a checkpoint of every active member.

        Raises:
            GroupTooLargeError: if memory ran out for one of several members, once the others are saved.
        """
        too_large: GroupTooLargeError | None = None
        for trainee in self.active:
            try:
                self._guard(trainee, Trainee.save)
            except GroupTooLargeError as error:
                too_large = error
        if too_large is not None:
            raise too_large


def _publish(trainee: Trainee) -> None:
    trainee.publish()
    if trainee.failed is None and trainee.steps_left <= 0:
        trainee.complete()
