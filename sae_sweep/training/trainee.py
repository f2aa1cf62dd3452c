"""A member in training: its learner, stream position, metrics and checkpoint."""

import logging
import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.analysis import Histogram
from sae_sweep.analysis.statistics import FeatureStatistics
from sae_sweep.config import SaeSweepError
from sae_sweep.saes import Learner, starting_sae
from sae_sweep.training.checkpoint import Checkpoint, discard_checkpoint, load_checkpoint, save_checkpoint
from sae_sweep.training.data import Batch
from sae_sweep.training.faults import device_failed, out_of_memory
from sae_sweep.training.member import GroupSettings, Member, Outcome
from sae_sweep.training.readings import Readings

logger = logging.getLogger(__name__)

_HISTOGRAM_TOKENS = 1024
"""SAE inputs of a batch that histograms are made of during training: enough to see their shape."""


class Trainee:
    """A member in training; resumes from its checkpoint if there is one, and rewinds the sink to it."""

    def __init__(self, member: Member, d_in: int, device: torch.device, settings: GroupSettings) -> None:
        self.member = member
        self.failed: str | None = None
        """One-line error message, once the member has failed; set by `fail`."""
        self.position: Any = None
        """Stream position after the last batch trained on; None before the first."""
        self.latest: dict[str, float] = {}
        """Latest metrics that reached the host."""
        self._readings = Readings(settings.log_every)
        self._histogram_steps = histogram_steps(
            member.run.config.steps, settings.log_every, settings.histograms
        )
        self._histograms: dict[str, Histogram] = {}
        """Histograms by name, to be logged with the metrics of their step."""
        self._earlier_s = 0.0
        self._since = time.monotonic()
        self._until: float | None = None
        self._saved_step = self._saved_tokens = 0
        self._whole = True  # no step was left in its middle
        config = member.run.config
        sae = starting_sae(config, d_in, member.run.run_id)
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
        self.member.sink.rewind(found.history if found else None)
        if found is not None:
            self.position, self._earlier_s = found.position, found.seconds
            self._saved_step, self._saved_tokens = self.learner.steps, self.learner.tokens
            logger.info("%s: resumed at %d tokens", run.name, self.learner.tokens)

    @property
    def steps_left(self) -> int:
        return self.member.run.config.steps - self.learner.steps

    @property
    def seconds(self) -> float:
        """Wall time until the member's training ended, earlier launches included."""
        until = time.monotonic() if self._until is None else self._until
        return self._earlier_s + until - self._since

    def fail(self, line: str) -> None:
        """End the member's training with a line that says why, and from where the same command goes on."""
        if self.failed is None:
            again = f"; the same command goes on from {self._saved_tokens:,} tokens"
            self.failed = line + again * (self._saved_step > 0)
            logger.error("%s: %s", self.member.run.name, self.failed)

    def train(self, batch: Batch) -> None:
        """Train one step, unless the member has failed or its checkpoint is ahead of the stream.

        A step that an exception cuts short leaves a state that is never saved.

        Raises:
            SaeSweepError: if a gradient is not finite, and the step cannot be computed for it.
            RuntimeError: if memory ran out, the device failed, or the stream skipped a batch.
        """
        done = self.learner.steps
        if self.failed is not None or batch.step < done:
            return
        if batch.step > done:
            raise RuntimeError(f"batch {done} is needed, but the stream is at {batch.step}")
        self._whole = False
        try:
            metrics = self.learner.step(batch.activations[self.member.run.config.layer])
        except Exception as error:
            error.add_note(f"in step {done + 1} of {self.member.run.name}")
            self._refuse_bad_gradient(done + 1, error)
            raise
        self._whole = True
        self.position = batch.position
        self._readings.add(self.learner.steps, self.learner.tokens, metrics, {"epochs": batch.epochs})
        if self.learner.steps in self._histogram_steps:
            self._histograms = self._distributions(batch.activations[self.member.run.config.layer])

    @torch.no_grad()
    def _distributions(self, x: Float[Tensor, "batch d_in"]) -> dict[str, Histogram]:
        """How often and how strongly the features fire in a part of a batch."""
        f = self.learner.sae.encode(x[:_HISTOGRAM_TOKENS].float())
        statistics = FeatureStatistics(f.shape[1], f.device)
        statistics.update(f)
        return {
            "train/log10_density": statistics.density_histogram(),
            "train/activations": statistics.activation_histogram(),
        }

    def _refuse_bad_gradient(self, step: int, error: Exception) -> None:
        """Raise SaeSweepError if a gradient of the step that `error` ended is not finite."""
        if out_of_memory(error) or device_failed(error):
            return  # nothing can be computed then
        gradients = [p.grad for p in self.learner.sae.parameters() if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise SaeSweepError(f"a gradient is not finite at step {step}: lower optimizer.lr") from error

    def publish(self, *, wait: bool = False) -> None:
        """Log metrics that reached the host; fail if a loss is not finite."""
        collected = self._readings.collect(wait=wait or bool(self._histograms))
        for point in collected.points:
            self.member.sink.scalars(point.tokens, point.values)
            self.latest = point.values
        histograms, self._histograms = self._histograms, {}
        if collected.diverged is None:
            for name, histogram in histograms.items():
                self.member.sink.histogram(name, list(histogram.counts), list(histogram.edges))
        if collected.diverged is not None and self.failed is None:
            bad = collected.diverged
            # The checkpoints may already contain infinities: a later launch starts over.
            discard_checkpoint(self.member.run.folder)
            self._saved_step = 0
            self.fail(
                f"the loss is {bad.values['loss']} at step {bad.step} ({bad.tokens} tokens): "
                "lower optimizer.lr, or look at the activations of this layer"
            )

    def save(self) -> None:
        """Write a checkpoint, unless it would be unchanged, or the member has failed or is in mid-step."""
        if self.failed is None and self._whole:
            self.publish(wait=True)
        if self.failed is not None or not self._whole or self.learner.steps == self._saved_step:
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
        self._saved_step, self._saved_tokens = self.learner.steps, self.learner.tokens

    def complete(self) -> None:
        """Log the last step and save, since the evaluation that follows may be interrupted."""
        self._until = time.monotonic()
        self._readings.add_final()
        self.save()

    def outcome(self) -> Outcome:
        return Outcome(self.member, self.learner.finish(), self.failed, self.seconds, self.learner.tokens)


def histogram_steps(steps: int, log_every: int, count: int) -> frozenset[int]:
    """Steps after which histograms are logged: `count` logged steps, evenly spread, before the last step."""
    wanted = (round(steps * (i + 1) / (count + 1) / log_every) * log_every for i in range(count))
    return frozenset(step for step in wanted if 0 < step < steps)
