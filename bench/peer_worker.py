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
from typing import Any, TextIO

import torch
from peer_trainers import PEERS, Job
from safetensors.torch import load_file


def own_output() -> TextIO:
    """Standard output for answers alone: whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    output = own_output()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=output, flush=True)

    torch.set_num_threads(job.threads)
    given = {name: value.to(job.device) for name, value in load_file(job.tensors).items()}
    try:
        peer = PEERS[job.peer](job, given)
    except ModuleNotFoundError as error:
        answer(missing=error.name)
        return
    answer(version=peer.version(), torch=torch.__version__, threads=torch.get_num_threads())
    peer.serve((line.strip() for line in sys.stdin), answer)


if __name__ == "__main__":
    main()
