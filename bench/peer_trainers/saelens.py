"""saelens: pip install sae-lens."""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from peer_trainers.base import MANY, Job, Peer, Seen, put


class SAELens(Peer):
    """`SAETrainer.step`."""

    def __init__(self, job: Job, given: dict[str, Tensor]) -> None:
        super().__init__(job, given)
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
        put(given["W_enc"], sae.W_enc)
        put(given["W_dec"], sae.W_dec)
        if job.architecture == "jumprelu":
            put(given["threshold"], sae.threshold)
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
        # kept as its `fit` keeps it: until the next one is there
        self.output = self.trainer.step(self.x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def look(self) -> Seen:
        from sae_lens.saes.sae import TrainStepInput

        trainer = self.trainer
        given = TrainStepInput(
            sae_in=self.x,
            dead_neuron_mask=trainer.dead_neurons,
            coefficients=trainer.get_coefficients(),
            n_training_steps=trainer.n_training_steps,
            is_logging_step=False,
        )
        with trainer.autocast_if_enabled:
            out = trainer.sae.training_forward_pass(given)
        mse = float(out.losses["mse_loss"]) / self.d_in
        return Seen(mse, float(out.feature_acts.bool().float().sum()) / len(self.x))
