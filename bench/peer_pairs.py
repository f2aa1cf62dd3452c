"""Both sides of a comparison: our `Learner` here, a peer's trainer in its worker, a step each in turn."""

import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peer_worker import Job, now
from torch import Tensor

from sae_sweep.config import (
    ArchitectureConfig,
    BatchTopKConfig,
    Config,
    JumpReLUConfig,
    OptimizerConfig,
    TopKConfig,
)
from sae_sweep.ops import choose_kernels
from sae_sweep.saes import Learner, build_sae
from sae_sweep.store import cache_folder

ARCHITECTURES = ("topk", "batchtopk", "jumprelu")
WARM_STEPS = 2
PAUSE_S = 0.05
"""Between turns: the threads of one side go to sleep before the other begins."""
LR = 1e-12
TOKENS = 10**10
"""Budget: too large for features to die of it."""
L0_COEFFICIENT = 0.0018
TOLERANCE = {"plain": 1e-3, "sparse": 1e-3, "autocast": 3e-2}
"""Share by which the squared errors of the two sides may differ before training."""


@dataclass(frozen=True)
class Rival:
    """How another project is run, and what has to be set here for the same work."""

    package: str
    """What pip installs; empty: nothing to install."""
    clip_norm: float | None
    """Of its trainer."""
    bandwidth: float
    """Of JumpReLU's kernel, its default."""
    numerics: str = "modern"
    """The preset that does its work here."""
    architectures: tuple[str, ...] = ARCHITECTURES


RIVALS = {
    "saelens": Rival("sae-lens", 1.0, 0.05),
    "dictionary_learning": Rival("dictionary-learning", 1.0, 0.001),
    "sparsify": Rival("eai-sparsify", None, 0.05, architectures=("topk",)),
    "study": Rival("", 1e5, 0.001, numerics="study"),
}


class PeerError(Exception):
    """A row that cannot be measured; the message says why."""


class MissingPeerError(PeerError):
    """The interpreter lacks the peer's package, or one that it needs."""


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    x: Tensor
    """[batch, d_in], normalised."""
    d_sae: int
    k: int
    l0: float
    device: str
    backend: str
    repeats: int


@dataclass(frozen=True)
class Row:
    """One comparison."""

    architecture: str
    peer: str
    variant: str

    @property
    def label(self) -> str:
        return self.peer if self.variant == "plain" else f"{self.peer} {self.variant}"


@dataclass(frozen=True)
class Start:
    """Where both sides of a row begin."""

    W_enc: Tensor
    W_dec: Tensor
    threshold: Tensor
    """[d_sae], JumpReLU's."""


def start_of(setting: Setting) -> Start:
    """The dictionary of one seed, and the threshold with which it has the wanted L0 on the batch."""
    sae = build_sae(TopKConfig(k=setting.k), setting.x.shape[1], setting.d_sae, seed=0, numerics="modern")
    W_enc, W_dec = sae.W_enc.detach(), sae.W_dec.detach()
    z = (setting.x.cpu() @ W_enc).flatten()
    level = z.topk(int(setting.l0 * len(setting.x)), sorted=False).values.min()
    return Start(W_enc, W_dec, level.expand(setting.d_sae).clone())


class Ours:
    """Our side of a row."""

    def __init__(self, row: Row, setting: Setting, start: Start) -> None:
        rival = RIVALS[row.peer]
        config = _config(row.architecture, rival, setting)
        sae = build_sae(
            config.architecture, setting.x.shape[1], setting.d_sae, seed=0, numerics=rival.numerics
        )
        with torch.no_grad():
            sae.W_enc.copy_(start.W_enc)
            sae.W_dec.copy_(start.W_dec)
            if row.architecture == "jumprelu":
                sae.get_parameter("threshold").copy_(start.threshold)
        self._learner = Learner(sae, config, setting.device)
        self._setting = setting

    def step(self) -> tuple[float, dict[str, Tensor]]:
        """Seconds, and what the step says of itself."""
        began = now(self._setting.device)
        metrics = self._learner.step(self._setting.x)
        return now(self._setting.device) - began, metrics


def _config(architecture: str, rival: Rival, setting: Setting) -> Config:
    kinds: dict[str, Callable[[], ArchitectureConfig]] = {
        "topk": lambda: TopKConfig(k=setting.k),
        "batchtopk": lambda: BatchTopKConfig(k=setting.k),
        "jumprelu": lambda: JumpReLUConfig(
            l0_coefficient=L0_COEFFICIENT, bandwidth=rival.bandwidth, warmup_fraction=0.0
        ),
    }
    return Config(
        architecture=kinds[architecture](),
        dictionary=-(-setting.d_sae // setting.x.shape[1]),
        k=setting.k,
        tokens=TOKENS,
        # the study's preset counts features as dead after 5 batches: of this size
        batch=TOKENS // 1000,
        numerics=rival.numerics,
        backend=setting.backend,
        optimizer=OptimizerConfig(
            lr=LR, warmup_fraction=0.0, decay_fraction=0.0, beta2=0.999, clip_norm=rival.clip_norm
        ),
    )


class Theirs:
    """A peer's worker process."""

    def __init__(self, row: Row, setting: Setting, tensors: Path, python: str) -> None:
        rival = RIVALS[row.peer]
        job = Job(
            peer=row.peer,
            architecture=row.architecture,
            variant=row.variant,
            tensors=str(tensors),
            k=setting.k,
            bandwidth=rival.bandwidth,
            l0_coefficient=L0_COEFFICIENT,
            lr=LR,
            device=setting.device,
            threads=torch.get_num_threads(),
        )
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        worker = Path(__file__).with_name("peer_trainers.py")
        self._process = subprocess.Popen(
            [python, str(worker), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        self._package = rival.package

    def hello(self) -> dict[str, Any]:
        """Versions, once the trainer is built."""
        found = self._answer()
        if "missing" in found:
            raise MissingPeerError(
                f"no module {found['missing']} in its interpreter: pip install {self._package} there"
            )
        return found

    def ask(self, command: str) -> dict[str, Any]:
        """What is answered to `look` or `step`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(f"its process ended: {self._last_error()}")
        return json.loads(line)

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return (named or lines or [f"exit status {self._process.returncode}"])[-1][:200]

    def close(self) -> None:
        """Close its input, at whose end it ends, and wait for it."""
        with suppress(BrokenPipeError), self._process:
            pass
        self._errors.close()


def measure(row: Row, setting: Setting, start: Start, tensors: Path, python: str) -> dict[str, Any]:
    """One record.

    Raises:
        PeerError: if the peer cannot be run, or would not do the same work.
    """
    theirs = Theirs(row, setting, tensors, python)
    try:
        ready = theirs.hello()
        ours = Ours(row, setting, start)
        before, seen = ours.step()[1], theirs.ask("look")
        _same_work(row, before, seen)
        for _ in range(WARM_STEPS):
            _pair(ours, theirs)
        pairs = [_pair(ours, theirs) for _ in range(setting.repeats)]
        after, last = ours.step()[1], theirs.ask("look")
    finally:
        theirs.close()
    return _record(row, setting, pairs, ready) | {
        "l0": float(after["l0"]),
        "peer_l0": last["l0"],
        "mse": float(before["mse"]),
        "peer_mse": seen["mse"],
    }


def _pair(ours: Ours, theirs: Theirs) -> tuple[float, float]:
    time.sleep(PAUSE_S)
    first = ours.step()[0]
    time.sleep(PAUSE_S)
    return first, theirs.ask("step")["seconds"]


def _same_work(row: Row, ours: dict[str, Tensor], theirs: dict[str, float]) -> None:
    mse, l0 = float(ours["mse"]), float(ours["l0"])
    share = TOLERANCE[row.variant]
    if abs(theirs["mse"] / mse - 1) > share or abs(theirs["l0"] / l0 - 1) > share:
        raise PeerError(
            f"not the same work: error {mse:.5f} and L0 {l0:.2f} here, "
            f"{theirs['mse']:.5f} and {theirs['l0']:.2f} there"
        )


def _record(
    row: Row, setting: Setting, pairs: Sequence[tuple[float, float]], ready: dict[str, Any]
) -> dict[str, Any]:
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [there / here for here, there in pairs]
    tokens, d_in = setting.x.shape
    return {
        "architecture": row.architecture,
        "d_in": d_in,
        "d_sae": setting.d_sae,
        "k": None if row.architecture == "jumprelu" else setting.k,
        "batch": tokens,
        "backend": backend_of(setting),
        "device": setting.device,
        "seconds": ours,
        "tokens_per_s": tokens / ours,
        "peer": row.label,
        "version": ready["version"],
        "peer_torch": ready["torch"],
        "peer_seconds": theirs,
        "peer_tokens_per_s": tokens / theirs,
        "ratio_to_peer": theirs / ours,
        "ratio_to_peer_lowest": min(ratios),
        "ratio_to_peer_highest": max(ratios),
        "repeats": len(pairs),
    }


def backend_of(setting: Setting) -> str:
    """What computes our step, after `auto` has been settled."""
    kernels = choose_kernels(setting.backend, torch.device(setting.device), cache_folder(None))
    return "reference" if kernels is None else {"cpu": "cpu", "cuda": "triton"}[setting.device]
