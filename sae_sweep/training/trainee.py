"""A member in training: its learner, stream position, metrics and checkpoint."""

import logging
import time
from typing import Any

import torch

from sae_sweep.config import SaeSweepError, first_line
from sae_sweep.saes import Learner, build_sae, init_seed
from sae_sweep.training.checkpoint import Checkpoint, discard_checkpoint, load_checkpoint, save_checkpoint
from sae_sweep.training.data import Batch
from sae_sweep.training.member import GroupSettings, Member, Outcome
from sae_sweep.training.memory import GroupTooLargeError, device_failed, out_of_memory
from sae_sweep.training.readings import Readings

logger = logging.getLogger(__name__)


class Trainee:
    """A member in training; resumes from its checkpoint if there is one, and rewinds the sink to it."""

    def __init__(self, member: Member, d_in: int, device: torch.device, settings: GroupSettings) -> None:
        self.member = member
        self.failed: str | None = None
        """One-line error message, once the member has failed."""
        self.position: Any = None
        """Stream position after the last batch trained on; None before the first."""
        self.latest: dict[str, float] = {}
        """Latest metrics that reached the host."""
        self._readings = Readings(settings.log_every)
        self._earlier_s = 0.0
        self._since = time.monotonic()
        self._until: float | None = None
        self._saved_step = 0
        config = member.run.config
        seed = init_seed(config, member.run.run_id)
        d_sae = config.dictionary * d_in
        sae = build_sae(config.architecture, d_in, d_sae, seed=seed, numerics=config.numerics)
        self.learner = Learner(sae, config, device, settings.cache)
        self._resume()

    def _resume(self) -> None:
        """Load the checkpoint, if a usable one exists, and rewind the sink to it."""
        run = self.member.run
        found = load_checkpoint(run.folder, run.run_id)
        if found is not None:
            try:
                self.learner.load_state(found.state)
            except SaeSweepError as error:
                logger.warning("%s: %s; starting it over from its first step", run.name, error)
                found = None
        self.member.sink.rewind(found.history if found else 0)
        if found is not None:
            self.position, self._earlier_s = found.position, found.seconds
            self._saved_step = self.learner.steps
            logger.info("%s: resumed at %d tokens", run.name, self.learner.tokens)

    @property
    def steps_left(self) -> int:
        return self.member.run.config.steps - self.learner.steps

    @property
    def seconds(self) -> float:
        """Wall time until the member's training ended, earlier launches included."""
        until = time.monotonic() if self._until is None else self._until
        return self._earlier_s + until - self._since

    def train(self, batch: Batch) -> None:
        """Train one step, unless the member has failed or its checkpoint is ahead of the stream.

        A step that torch refuses to compute, for example because it overflows, fails only this member.

        Raises:
            GroupTooLargeError: if memory ran out, perhaps in the middle of the step.
            RuntimeError: if the device failed, or the stream skipped a batch.
        """
        done = self.learner.steps
        if self.failed is not None or batch.step < done:
            return
        if batch.step > done:
            raise RuntimeError(
                f"{self.member.run.name} needs batch {done}, but the stream is at {batch.step}"
            )
        try:
            metrics = self.learner.step(batch.activations[self.member.run.config.layer])
        except RuntimeError as error:
            if device_failed(error):
                raise
            if out_of_memory(error):
                raise GroupTooLargeError(first_line(error)) from error
            self.failed = f"step {done + 1} could not be computed: {first_line(error)}; lower optimizer.lr"
            return
        self.position = batch.position
        self._readings.add(self.learner.steps, self.learner.tokens, metrics, {"epochs": batch.epochs})

    def publish(self, *, wait: bool = False) -> None:
        """Log metrics that reached the host; fail if a loss is not finite."""
        collected = self._readings.collect(wait=wait)
        for point in collected.points:
            self.member.sink.scalars(point.tokens, point.values)
            self.latest = point.values
        if collected.diverged is not None and self.failed is None:
            bad = collected.diverged
            self.failed = (
                f"the loss is {bad.values['loss']} at step {bad.step} ({bad.tokens} tokens): "
                "lower optimizer.lr, or look at the activations of this layer"
            )
            # The checkpoints may already contain infinities: a later launch starts over.
            discard_checkpoint(self.member.run.folder)

    def save(self) -> None:
        """Write a checkpoint, unless it would be unchanged or the member has failed."""
        self.publish(wait=True)
        if self.failed is not None or self.learner.steps == self._saved_step:
            return
        checkpoint = Checkpoint(
            self.learner.state(),
            self.position,
            history=self.member.sink.mark(),
            seconds=self.seconds,
            resolved=self.member.conditions.resolved.as_dict(),
            mixed=self.member.conditions.mixed,
        )
        save_checkpoint(self.member.run.folder, self.member.run.run_id, checkpoint)
        self._saved_step = self.learner.steps

    def complete(self) -> None:
        """Log the last step and save, since the evaluation that follows may be interrupted."""
        self._until = time.monotonic()
        self._readings.add_final()
        self.save()

    def outcome(self) -> Outcome:
        return Outcome(self.member, self.learner.sae, self.failed, self.seconds, self.learner.tokens)
