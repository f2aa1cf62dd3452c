"""Runs Lightning's `fit` without its default output to the terminal and the disk."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from sae_sweep.training.data import Batch
from sae_sweep.training.module import GroupModule

_NOISY_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def fit(
    group: GroupModule, data: Iterable[Batch], callbacks: Sequence[Callback], device: torch.device
) -> None:
    """Train until the data ends or no member is left."""
    with _quiet():
        trainer = Trainer(
            accelerator=device.type,
            devices=1,
            max_epochs=1,
            callbacks=list(callbacks),
            # Under SLURM, Lightning's default environment would requeue the job itself.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(group, train_dataloaders=data)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's hints on devices, data loaders and features."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
