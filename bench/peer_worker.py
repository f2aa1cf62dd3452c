"""Another project's trainer, in its own interpreter, told by `peers.py` what to do.

The command line is one JSON object (`Job`); after that each line on standard input is a command, and each is
answered by one JSON object on standard output. What the libraries print goes to standard error.

    (unasked, once)  version, torch, threads; or the module that is missing
    look             mse and l0 of the batch under the weights as they are, by the peer's own forward pass
    step             one training step: its seconds

Only torch, safetensors and the peer's package are imported: nothing of sae_sweep.
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


def own_output() -> TextIO:
    """Standard output for answers alone: whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main(peers: dict[str, type[Peer]]) -> None:
    job = Job(**json.loads(sys.argv[1]))
    output = own_output()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=output, flush=True)

    torch.set_num_threads(job.threads)
    given = {name: value.to(job.device) for name, value in load_file(job.tensors).items()}
    try:
        peer = peers[job.peer](job, given)
    except ModuleNotFoundError as error:
        answer(missing=error.name)
        return
    answer(version=peer.version(), torch=torch.__version__, threads=torch.get_num_threads())
    peer.serve((line.strip() for line in sys.stdin), answer)
