"""One Lightning `fit`, without what Lightning leaves on the terminal and on the disk by itself."""

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
            # Under SLURM Lightning would choose an environment that requeues the job by itself.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(group, train_dataloaders=data)


@contextmanager
def _quiet() -> Iterator[None]:
    """Its hints (device found, loader without workers, tips) say nothing to someone who trains SAEs."""
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
