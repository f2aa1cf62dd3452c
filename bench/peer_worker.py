"""The process that runs another project's trainer in its own interpreter, driven by `peers.py`.

The command line is one JSON object (`Job`). Each line on standard input is then a command, answered by one
JSON object on standard output; what the libraries print goes to standard error.

    (once, at start)  version, torch, threads; or the name of the missing module
    evaluate          mse and l0 of the batch under the current weights, by the peer's own forward pass
    step              seconds of one training step

Only torch, safetensors and the peer's package are imported, nothing of sae_sweep.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """What a peer trains, and how."""

    peer: str
    """A key of `PEERS`."""
    architecture: str
    """topk, batchtopk or jumprelu."""
    variant: str
    """default, sparse or autocast."""
    tensors: str
    """A safetensors file: x [batch, d_in], normalised; W_enc, W_dec and threshold as both sides start."""
    k: int
    bandwidth: float
    """Width of JumpReLU's kernel."""
    l0_coefficient: float
    """Weight of L0 against the squared error averaged over d_in."""
    lr: float
    device: str
    threads: int


class BatchMetrics(NamedTuple):
    """Metrics of one forward pass on the batch."""

    mse: float
    """Squared error, mean over batch and d_in."""
    l0: float
    """Active latents per token."""


class Peer:
    """A trainer with its one batch."""

    def __init__(self, job: Job, tensors: dict[str, Tensor]) -> None:
        self.job = job
        self.x = tensors["x"]
        self.d_sae, self.d_in = tensors["W_dec"].shape

    def version(self) -> str:
        """The library's version."""
        raise NotImplementedError

    def step(self) -> None:
        """Does one training step on `x`."""
        raise NotImplementedError

    def evaluate(self) -> BatchMetrics:
        """Runs the forward pass of a training step, without training."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Resets state so that every step does the same work; not timed."""

    def serve(self, commands: Iterator[str], answer: Callable[..., None]) -> None:
        """Answers commands until there are no more."""
        for command in commands:
            if command == "evaluate":
                answer(**self.evaluate()._asdict())
            else:
                self.before_step()
                began = now(self.job.device)
                self.step()
                answer(seconds=now(self.job.device) - began)


def now(device: str) -> float:
    """Clock in seconds, read after the device has finished its queue."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def put(values: Tensor, parameter: Tensor) -> None:
    """Copies values into a parameter, which keeps its memory layout."""
    parameter.copy_(values)


def own_output() -> TextIO:
    """Reserves standard output for answers; everything else printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main(peers: dict[str, type[Peer]]) -> None:
    job = Job(**json.loads(sys.argv[1]))
    output = own_output()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=output, flush=True)

    torch.set_num_threads(job.threads)
    tensors = {name: value.to(job.device) for name, value in load_file(job.tensors).items()}
    try:
        peer = peers[job.peer](job, tensors)
    except ModuleNotFoundError as error:
        answer(missing=error.name)
        return
    answer(version=peer.version(), torch=torch.__version__, threads=torch.get_num_threads())
    peer.serve((line.strip() for line in sys.stdin), answer)
