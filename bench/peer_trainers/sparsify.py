"""sparsify: pip install eai-sparsify."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from torch import Tensor, nn

from peer_trainers.base import MANY, Job, Peer, Seen, now, put


class Sparsify(Peer):
    """`Trainer.fit`, which cannot be called step by step.

    So it runs whole, over a data set that carries out commands when it is asked for the next batch, and a
    language model that is nothing but its activations.
    """

    def __init__(self, job: Job, given: dict[str, Tensor]) -> None:
        super().__init__(job, given)
        if job.device == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        # its Adam is 8-bit where bitsandbytes is installed
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
            finetune="the given weights",  # else its first step would set b_dec to the mean of the batch
        )
        self.trainer = Trainer(config, _Commands(self), _OneBatch(self.x))
        (self.coder,) = self.trainer.saes.values()
        put(given["W_enc"].t(), self.coder.encoder.weight)
        put(given["W_dec"], self.coder.W_dec)

    def version(self) -> str:
        return version("eai-sparsify")

    def serve(self, commands: Iterator[str], answer: Callable[..., None]) -> None:
        self.commands, self.answer = commands, answer
        with contextlib.suppress(_OverError):
            self.trainer.fit()

    @torch.no_grad()
    def look(self) -> Seen:
        out = self.coder(self.x)
        variance = (self.x - self.x.mean(0)).square().sum()
        mse = float(out.fvu * variance) / self.x.numel()
        return Seen(mse, float((out.latent_acts > 0).sum()) / len(self.x))


class _OverError(Exception):
    """Leaves `fit` before it saves."""


class _Commands(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Carries out commands between batches; a step lasts from one batch until the next is asked for."""

    def __init__(self, peer: Sparsify) -> None:
        self._peer = peer

    def __len__(self) -> int:
        return MANY

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        peer = self._peer
        for command in peer.commands:
            if command == "look":
                peer.answer(**peer.look()._asdict())
                continue
            began = now(peer.job.device)
            yield {"input_ids": torch.ones(len(peer.x), dtype=torch.long)}
            peer.answer(seconds=now(peer.job.device) - began)
        raise _OverError


class _OneBatch(nn.Module):
    """A language model with one batch of activations, whatever it reads."""

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
