"""What every peer's trainer is told, does and answers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MANY = 10**9
"""Steps or tokens that no benchmark comes to."""


@dataclass(frozen=True)
class Job:
    """What to train, and on what."""

    peer: str
    """A key of `PEERS`."""
    architecture: str
    """topk, batchtopk or jumprelu."""
    variant: str
    """plain, sparse or autocast."""
    tensors: str
    """A safetensors file: x [batch, d_in], normalised; W_enc, W_dec, threshold: where both sides start."""
    k: int
    bandwidth: float
    """Of JumpReLU's kernel."""
    l0_coefficient: float
    """Against the squared error as a mean over d_in."""
    lr: float
    device: str
    threads: int


class Seen(NamedTuple):
    """What a forward pass made of the batch."""

    mse: float
    """Squared error, mean over batch and d_in."""
    l0: float
    """Active latents a token."""


class Peer:
    """One trainer, with one batch."""

    def __init__(self, job: Job, given: dict[str, Tensor]) -> None:
        self.job = job
        self.x = given["x"]
        self.d_sae, self.d_in = given["W_dec"].shape

    def version(self) -> str:
        """Of the library."""
        raise NotImplementedError

    def step(self) -> None:
        """One training step on `x`."""
        raise NotImplementedError

    def look(self) -> Seen:
        """What training sees; nothing is trained."""
        raise NotImplementedError

    def before_step(self) -> None:
        """What must be undone so that a step is always the same work; not timed."""

    def serve(self, commands: Iterator[str], answer: Callable[..., None]) -> None:
        """Carry out commands until they end."""
        for command in commands:
            if command == "look":
                answer(**self.look()._asdict())
            else:
                self.before_step()
                began = now(self.job.device)
                self.step()
                answer(seconds=now(self.job.device) - began)


def now(device: str) -> float:
    """Seconds, when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def put(values: Tensor, parameter: Tensor) -> None:
    """Copy into a parameter, which keeps its own layout in memory."""
    parameter.copy_(values)
