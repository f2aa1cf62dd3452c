"""The trainers of other projects, each driven step by step in its own interpreter (see `peer_worker.py`).

A project is imported only when its trainer is built; nothing of sae_sweep is imported.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peer_worker import BatchMetrics, Job, Peer, main, now, put
from torch import Tensor, nn

MANY = 10**9
"""A number of steps or tokens that no benchmark reaches."""


class SAELens(Peer):
    """SAELens: `SAETrainer.step`."""

    def __init__(self, job: Job, tensors: dict[str, Tensor]) -> None:
        super().__init__(job, tensors)
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        config = SAETrainerConfig(
            total_training_samples=MANY * len(self.x),
            train_batch_size_samples=len(self.x),
            lr=job.lr,
            lr_end=job.lr,
            device=job.device,
            autocast=job.variant == "autocast",
        )
        sae = self._sae()
        put(tensors["W_enc"], sae.W_enc)
        put(tensors["W_dec"], sae.W_dec)
        if job.architecture == "jumprelu":
            put(tensors["threshold"], sae.threshold)
        self.trainer = SAETrainer(config, sae, data_provider=iter(()))

    def _sae(self) -> Any:
        import sae_lens

        job = self.job
        size = {"d_in": self.d_in, "d_sae": self.d_sae, "device": job.device, "dtype": "float32"}
        if job.architecture == "topk":
            sparse = job.variant == "sparse"
            config = sae_lens.TopKTrainingSAEConfig(
                **size,
                k=job.k,
                use_sparse_activations=sparse,
                # torch has no backward for sparse latents times decoder norms
                rescale_acts_by_decoder_norm=not sparse,
            )
            return sae_lens.TopKTrainingSAE(config)
        if job.architecture == "batchtopk":
            return sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**size, k=job.k))
        config = sae_lens.JumpReLUTrainingSAEConfig(
            **size,
            jumprelu_bandwidth=job.bandwidth,
            l0_coefficient=job.l0_coefficient * self.d_in,  # its error is a sum over d_in
        )
        return sae_lens.JumpReLUTrainingSAE(config)

    def version(self) -> str:
        return version("sae-lens")

    def step(self) -> None:
        # its `fit` keeps the output until the next step too
        self.output = self.trainer.step(self.x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def evaluate(self) -> BatchMetrics:
        from sae_lens.saes.sae import TrainStepInput

        trainer = self.trainer
        step_input = TrainStepInput(
            sae_in=self.x,
            dead_neuron_mask=trainer.dead_neurons,
            coefficients=trainer.get_coefficients(),
            n_training_steps=trainer.n_training_steps,
            is_logging_step=False,
        )
        with trainer.autocast_if_enabled:
            out = trainer.sae.training_forward_pass(step_input)
        mse = float(out.losses["mse_loss"]) / self.d_in
        return BatchMetrics(mse, float(out.feature_acts.bool().float().sum()) / len(self.x))


class DictionaryLearning(Peer):
    """dictionary_learning: `update` of its trainers, as its `trainSAE` calls it."""

    def __init__(self, job: Job, tensors: dict[str, Tensor]) -> None:
        super().__init__(job, tensors)
        self.trainer = self._trainer()
        ae = self.trainer.ae
        if job.architecture == "jumprelu":
            put(tensors["W_enc"], ae.W_enc)
            put(tensors["W_dec"], ae.W_dec)
            put(tensors["threshold"], ae.threshold)
        else:
            put(tensors["W_enc"].t(), ae.encoder.weight)
            put(tensors["W_dec"].t(), ae.decoder.weight)
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
        # tracks the threshold at every step, as its default does after the first 1,000
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
    def evaluate(self) -> BatchMetrics:
        _, _, f, losses = self.trainer.loss(self.x, step=self.steps, logging=True)
        return BatchMetrics(losses["l2_loss"] / self.d_in, float((f > 0).sum()) / len(self.x))


class Sparsify(Peer):
    """sparsify: `Trainer.fit`, which cannot be called step by step.

    It runs whole, over a data set that carries out commands before it yields the next batch, and with a
    language model that only returns the given activations.
    """

    def __init__(self, job: Job, tensors: dict[str, Tensor]) -> None:
        super().__init__(job, tensors)
        if job.device == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        # with bitsandbytes, its Adam would be 8-bit
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        config = TrainConfig(
            SparseCoderConfig(k=job.k, num_latents=self.d_sae),
            batch_size=1,
            optimizer="adam",
            lr=job.lr,
            lr_warmup_steps=0,
            hookpoints=["site"],
            log_to_wandb=False,
            save_every=MANY,
            finetune="the given weights",  # otherwise its first step sets b_dec to the mean of the batch
        )
        self.trainer = Trainer(config, _Commands(self), _OneBatch(self.x))
        (self.coder,) = self.trainer.saes.values()
        put(tensors["W_enc"].t(), self.coder.encoder.weight)
        put(tensors["W_dec"], self.coder.W_dec)

    def version(self) -> str:
        return version("eai-sparsify")

    def serve(self, commands: Iterator[str], answer: Callable[..., None]) -> None:
        self.commands, self.answer = commands, answer
        with contextlib.suppress(_StopFitError):
            self.trainer.fit()

    @torch.no_grad()
    def evaluate(self) -> BatchMetrics:
        out = self.coder(self.x)
        variance = (self.x - self.x.mean(0)).square().sum()
        mse = float(out.fvu * variance) / self.x.numel()
        return BatchMetrics(mse, float((out.latent_acts > 0).sum()) / len(self.x))


class _StopFitError(Exception):
    """Raised to leave `fit` before it saves."""


class _Commands(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Carries out commands between batches; a step lasts from one batch to the request for the next."""

    def __init__(self, peer: Sparsify) -> None:
        self._peer = peer

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        peer = self._peer
        for command in peer.commands:
            if command == "evaluate":
                peer.answer(**peer.evaluate()._asdict())
                continue
            began = now(peer.job.device)
            yield {"input_ids": torch.ones(len(peer.x), dtype=torch.long)}
            peer.answer(seconds=now(peer.job.device) - began)
        raise _StopFitError


class _OneBatch(nn.Module):
    """A language model that returns one batch of activations for any input."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.site = _Site(x[None])
        self.device = x.device
        self.dummy_inputs = {"input_ids": torch.ones(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.site(input_ids)


class _Site(nn.Module):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x = x

    def forward(self, input_ids: Tensor) -> Tensor:
        del input_ids
        return self._x


class Study(Peer):
    """The study's trainer (bartbussmann/BatchTopK), re-derived in `tests/saes/study_reference.py`."""

    def __init__(self, job: Job, tensors: dict[str, Tensor]) -> None:
        super().__init__(job, tensors)
        reference = _study_reference()
        self.sae = reference.StudySAE(
            job.architecture,
            self.d_in,
            self.d_sae,
            seed=0,
            k=job.k,
            coefficient=job.l0_coefficient,
            bandwidth=job.bandwidth,
        )
        put(tensors["W_enc"], self.sae.W_enc)
        put(tensors["W_dec"], self.sae.W_dec)
        if job.architecture == "jumprelu":
            put(tensors["threshold"].log(), self.sae.log_threshold)
        self.sae.to(job.device)
        self.trainer = reference.StudyTrainer(self.sae)
        self.trainer.adam.param_groups[0]["lr"] = job.lr
        self.before_step()

    def version(self) -> str:
        return "re-derived"

    def before_step(self) -> None:
        # AuxK would start after 5 batches without firing
        self.sae.quiet_batches = torch.zeros(self.d_sae, dtype=torch.long, device=self.job.device)

    def step(self) -> None:
        self.trainer.step(self.x)

    @torch.no_grad()
    def evaluate(self) -> BatchMetrics:
        sae = self.sae
        if self.job.architecture != "jumprelu":
            return BatchMetrics(float(sae(self.x)), float(self.job.k))
        # its loss is the error plus coefficient x L0
        used, sae.coefficient = sae.coefficient, 0.0
        mse, sae.coefficient = float(sae(self.x)), 1.0
        both, sae.coefficient = float(sae(self.x)), used
        return BatchMetrics(mse, both - mse)


def _study_reference() -> ModuleType:
    path = Path(__file__).parents[1] / "tests" / "saes" / "study_reference.py"
    spec = importlib.util.spec_from_file_location("study_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PEERS: dict[str, type[Peer]] = {
    "saelens": SAELens,
    "dictionary_learning": DictionaryLearning,
    "sparsify": Sparsify,
    "study": Study,
}


if __name__ == "__main__":
    main(PEERS)
