"""Fakes: a stream that is a pure function of (layer, step), and a sink that records its calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_sweep.config import (
    ArchitectureConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.store import PlannedRun, RunFolder
from sae_sweep.store.resolved import Conditions, Resolved
from sae_sweep.training import Member, MetricSink

D_IN = 8
BATCH = 32


class Batch(NamedTuple):
    activations: dict[int, Tensor]
    step: int
    position: Any
    epochs: float


def residuals(layer: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * layer + step)
    return torch.randn(BATCH, D_IN, generator=generator)


class FakeStream:
    """A stream of `length` batches; `before` is called before each and may raise or send a signal."""

    def __init__(
        self,
        layers: Sequence[int],
        length: int = 10_000,
        before: Callable[[Sequence[int], int], None] = lambda layers, step: None,
    ) -> None:
        self.layers = list(layers)
        self.step = 0
        self._length = length
        self._before = before

    @property
    def epochs(self) -> float:
        return self.step / 100

    def position(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, position: Mapping[str, Any]) -> None:
        self.step = position["step"]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.step >= self._length:
            raise StopIteration
        self._before(self.layers, self.step)
        self.step += 1
        activations = {layer: residuals(layer, self.step - 1) for layer in self.layers}
        return Batch(activations, self.step - 1, self.position(), self.epochs)


class FakeSink:
    """Records calls in order."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        self.points.append((tokens, dict(values)))

    def mark(self) -> int:
        return len(self.points)

    def rewind(self, mark: int) -> None:
        del self.points[mark:]

    def histogram(self, name: str, counts: Sequence[float], edges: Sequence[float]) -> None:
        self.points.append((self.points[-1][0], {name: float(sum(counts)), f"{name} ends at": edges[-1]}))

    def summary(self, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def image(self, name: str, path: Path) -> None:
        raise NotImplementedError

    def artifact(self, name: str, folder: Path) -> None:
        raise NotImplementedError

    def finish(self, *, failed: bool) -> None:
        raise NotImplementedError


CONDITIONS = Conditions(Resolved("cpu AVX2", "float32", "float32", "sdpa", "cpu", 64, 1))


def make_config(
    architecture: ArchitectureConfig | None = None, *, steps: int = 12, lr: float = 1e-3, **keys: Any
) -> RunConfig:
    config = RunConfig(
        model=ModelConfig(path="no-such-model"),
        architecture=architecture or TopKConfig(k=2),
        dictionary=2,
        layer=1,
        tokens=steps * BATCH + 5,
        batch=BATCH,
        device="cpu",
        optimizer=OptimizerConfig(lr=lr),
    )
    return replace(config, **keys)


def make_member(root: Path, name: str, config: RunConfig, sink: MetricSink | None = None) -> Member:
    run = PlannedRun(name, f"id-{name}", "group", config, RunFolder(root / name), {})
    return Member(run, sink or FakeSink(), CONDITIONS)
