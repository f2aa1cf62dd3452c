"""dictionary_learning: pip install dictionary-learning."""

import contextlib
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from peer_trainers.base import MANY, Job, Peer, Seen, put


class DictionaryLearning(Peer):
    """`update` of its trainers, as its `trainSAE` calls it."""

    def __init__(self, job: Job, given: dict[str, Tensor]) -> None:
        super().__init__(job, given)
        self.trainer = self._trainer()
        ae = self.trainer.ae
        if job.architecture == "jumprelu":
            put(given["W_enc"], ae.W_enc)
            put(given["W_dec"], ae.W_dec)
            put(given["threshold"], ae.threshold)
        else:
            put(given["W_enc"].t(), ae.encoder.weight)
            put(given["W_dec"].t(), ae.decoder.weight)
        # step 0 would set b_dec to the geometric median of the batch
        self.steps = 1

    def _trainer(self) -> Any:
        from dictionary_learning.trainers import BatchTopKTrainer, JumpReluTrainer, TopKTrainer

        job = self.job
        common = {
            "steps": MANY,
            "activation_dim": self.d_in,
            "dict_size": self.d_sae,
            "layer": 0,
            "lm_name": "none",
            "lr": job.lr,
            "warmup_steps": 0,
            "device": job.device,
        }
        if job.architecture == "jumprelu":
            return JumpReluTrainer(**common, bandwidth=job.bandwidth, sparsity_warmup_steps=None)
        kinds = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}
        # the threshold is followed at every step, as it is after the first 1,000
        return kinds[job.architecture](**common, k=job.k, threshold_start_step=0)

    def version(self) -> str:
        return version("dictionary-learning")

    def step(self) -> None:
        x = self.x
        context: Any = contextlib.nullcontext()
        if self.job.variant == "autocast":
            x, context = x.bfloat16(), torch.autocast("cuda", dtype=torch.bfloat16)
        with context:
            self.trainer.update(self.steps, x)
        self.steps += 1

    @torch.no_grad()
    def look(self) -> Seen:
        _, _, f, losses = self.trainer.loss(self.x, step=self.steps, logging=True)
        return Seen(losses["l2_loss"] / self.d_in, float((f > 0).sum()) / len(self.x))
