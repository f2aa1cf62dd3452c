"""Timed pairs of steps: our `Learner` in this process and a peer's trainer in its own, in turn."""

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
    JumpReLUConfig,
    OptimizerConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.ops import choose_kernels
from sae_sweep.saes import Learner, build_sae
from sae_sweep.store import cache_folder

ARCHITECTURES = ("topk", "batchtopk", "jumprelu")
WARM_STEPS = 2
PAUSE_S = 0.05
"""Pause between turns, so that one side's threads sleep before the other starts."""
LR = 1e-12
TOKENS = 10**10
"""Token budget, so large that no feature counts as dead."""
L0_COEFFICIENT = 0.0018
TOLERANCE = {"default": 1e-3, "sparse": 1e-3, "autocast": 3e-2}
"""Largest relative difference in squared error and L0 between the sides before training, per variant."""


@dataclass(frozen=True)
class PeerSpec:
    """How a peer is run, and what our side sets to do the same work."""

    package: str
    """Name for pip; empty if there is nothing to install."""
    clip_norm: float | None
    """Largest gradient norm in its trainer; None: no clipping."""
    bandwidth: float
    """Its default width of JumpReLU's kernel."""
    numerics: str = "modern"
    """The preset of ours that does the same work."""
    architectures: tuple[str, ...] = ARCHITECTURES


PEER_SPECS = {
    "saelens": PeerSpec("sae-lens", 1.0, 0.05),
    "dictionary_learning": PeerSpec("dictionary-learning", 1.0, 0.001),
    "sparsify": PeerSpec("eai-sparsify", None, 0.05, architectures=("topk",)),
    "study": PeerSpec("", 1e5, 0.001, numerics="study"),
}


class PeerError(Exception):
    """A row cannot be measured; the message says why."""


class MissingPeerError(PeerError):
    """The interpreter lacks the peer's package or a dependency of it."""


@dataclass(frozen=True)
class Setting:
    """Settings that all rows share."""

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
    """One comparison with a peer."""

    architecture: str
    peer: str
    variant: str

    @property
    def label(self) -> str:
        return self.peer if self.variant == "default" else f"{self.peer} {self.variant}"


@dataclass(frozen=True)
class Start:
    """Weights that both sides of a row start from."""

    W_enc: Tensor
    W_dec: Tensor
    threshold: Tensor
    """[d_sae], of JumpReLU."""


def start_of(setting: Setting) -> Start:
    """Weights of seed 0, and the JumpReLU threshold that gives an L0 of `setting.l0` on the batch."""
    sae = build_sae(TopKConfig(k=setting.k), setting.x.shape[1], setting.d_sae, seed=0, numerics="modern")
    W_enc, W_dec = sae.W_enc.detach(), sae.W_dec.detach()
    z = (setting.x.cpu() @ W_enc).flatten()
    level = z.topk(int(setting.l0 * len(setting.x)), sorted=False).values.min()
    return Start(W_enc, W_dec, level.expand(setting.d_sae).clone())


class Ours:
    """Our side of a row: a learner in this process."""

    def __init__(self, row: Row, setting: Setting, start: Start) -> None:
        spec = PEER_SPECS[row.peer]
        config = _config(row.architecture, spec, setting)
        sae = build_sae(
            config.architecture, setting.x.shape[1], setting.d_sae, seed=0, numerics=spec.numerics
        )
        with torch.no_grad():
            sae.W_enc.copy_(start.W_enc)
            sae.W_dec.copy_(start.W_dec)
            if row.architecture == "jumprelu":
                sae.get_parameter("threshold").copy_(start.threshold)
        self._learner = Learner(sae, config, setting.device)
        self._setting = setting

    def step(self) -> tuple[float, dict[str, Tensor]]:
        """Does one step; returns its seconds and metrics."""
        began = now(self._setting.device)
        metrics = self._learner.step(self._setting.x)
        return now(self._setting.device) - began, metrics


def _config(architecture: str, spec: PeerSpec, setting: Setting) -> RunConfig:
    kinds: dict[str, Callable[[], ArchitectureConfig]] = {
        "topk": lambda: TopKConfig(k=setting.k),
        "batchtopk": lambda: BatchTopKConfig(k=setting.k),
        "jumprelu": lambda: JumpReLUConfig(
            l0_coefficient=L0_COEFFICIENT, bandwidth=spec.bandwidth, warmup_fraction=0.0
        ),
    }
    return RunConfig(
        architecture=kinds[architecture](),
        dictionary=-(-setting.d_sae // setting.x.shape[1]),
        tokens=TOKENS,
        # numerics=study counts a feature as dead after 5 batches of this size
        batch=TOKENS // 1000,
        numerics=spec.numerics,
        backend=setting.backend,
        optimizer=OptimizerConfig(
            lr=LR, warmup_fraction=0.0, decay_fraction=0.0, beta2=0.999, clip_norm=spec.clip_norm
        ),
    )


class Theirs:
    """A peer's side of a row: a trainer in its own process."""

    def __init__(self, row: Row, setting: Setting, tensors: Path, python: str) -> None:
        spec = PEER_SPECS[row.peer]
        job = Job(
            peer=row.peer,
            architecture=row.architecture,
            variant=row.variant,
            tensors=str(tensors),
            k=setting.k,
            bandwidth=spec.bandwidth,
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
        self._package = spec.package

    def hello(self) -> dict[str, Any]:
        """Waits until the trainer is built; returns its versions."""
        found = self._answer()
        if "missing" in found:
            raise MissingPeerError(
                f"no module {found['missing']} in its interpreter: pip install {self._package} there"
            )
        return found

    def ask(self, command: str) -> dict[str, Any]:
        """Answer to `evaluate` or `step`."""
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
        """Closes its input, which ends the process, and waits for it."""
        with suppress(BrokenPipeError), self._process:
            pass
        self._errors.close()


def measure(row: Row, setting: Setting, start: Start, tensors: Path, python: str) -> dict[str, Any]:
    """Times a row and returns its record.

    Raises:
        PeerError: if the peer cannot be run or does not do the same work.
    """
    theirs = Theirs(row, setting, tensors, python)
    try:
        ready = theirs.hello()
        ours = Ours(row, setting, start)
        before, peer_before = ours.step()[1], theirs.ask("evaluate")
        _check_same_work(row, before, peer_before)
        for _ in range(WARM_STEPS):
            _pair(ours, theirs)
        pairs = [_pair(ours, theirs) for _ in range(setting.repeats)]
        after, peer_after = ours.step()[1], theirs.ask("evaluate")
    finally:
        theirs.close()
    return _record(row, setting, pairs, ready) | {
        "l0": float(after["l0"]),
        "peer_l0": peer_after["l0"],
        "mse": float(before["mse"]),
        "peer_mse": peer_before["mse"],
    }


def _pair(ours: Ours, theirs: Theirs) -> tuple[float, float]:
    time.sleep(PAUSE_S)
    first = ours.step()[0]
    time.sleep(PAUSE_S)
    return first, theirs.ask("step")["seconds"]


def _check_same_work(row: Row, ours: dict[str, Tensor], theirs: dict[str, float]) -> None:
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
    """The backend of our step, with `auto` resolved."""
    return choose_kernels(setting.backend, torch.device(setting.device), cache_folder(None)).name
