"""The LightningModule of a group: every SAE trains on each batch, up to its own budget."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule

from sae_sweep.config import SaeSweepError
from sae_sweep.signals import StopRequest
from sae_sweep.training.data import Batch
from sae_sweep.training.member import Outcome
from sae_sweep.training.memory import GroupTooLargeError
from sae_sweep.training.trainee import Trainee


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

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        for trainee in self.active:
            try:
                trainee.train(batch)
            except GroupTooLargeError as error:
                trainee.failed = f"memory ran out ({error}): lower dictionary or batch"
                if len(self.active) > 1:
                    raise

    def publish(self) -> None:
        """Log available metrics; retire members that failed or reached their budget.

        Members at their budget are all saved first: handling an outcome can take minutes, and a stop request
        is obeyed between two outcomes.

        Raises:
            Interrupted: if a signal has arrived, once every member is saved.
        """
        for trainee in self.active:
            trainee.publish()
            if trainee.failed is None and trainee.steps_left <= 0:
                try:
                    trainee.complete()
                except SaeSweepError as error:
                    trainee.failed = str(error)
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

    def fail(self, error: SaeSweepError, layer: int | None = None) -> None:
        """Fail the active members of a layer, or all active members if `layer` is None."""
        concerned = [t for t in self.active if layer in (None, t.member.run.config.layer)]
        for trainee in concerned:
            trainee.failed = str(error)
            self.retire(trainee)

    def save(self) -> None:
        """Write a checkpoint of every active member."""
        for trainee in self.active:
            trainee.save()
