"""Copies metrics from the device to the host asynchronously, so that training never waits."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CHECK_EVERY = 50
"""Maximum steps on a device between two checks that the loss is finite."""


class MetricPoint(NamedTuple):
    """Metrics that are logged at one step."""

    step: int
    """Steps done, this one included."""
    tokens: int
    """SAE inputs seen, this step included."""
    values: dict[str, float]


class Collected(NamedTuple):
    """Metrics that reached the host since the last `collect`."""

    points: list[MetricPoint]
    """Points to log, in order."""
    diverged: MetricPoint | None
    """First step with a non-finite loss; points from there on are dropped."""


class HostCopy:
    """Asynchronous copy of a few numbers to the host."""

    def __init__(self, values: Float[Tensor, " n"]) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def done(self) -> bool:
        """Whether `read` returns without waiting (on MPS it may wait a little)."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


class _Step(NamedTuple):
    step: int
    tokens: int
    metrics: Mapping[str, Tensor]
    known: Mapping[str, float]
    logged: bool


class Readings:
    """Metrics of one member: checks the loss of every step, and logs every `log_every`-th step."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._waiting: list[_Step] = []
        self._sent: deque[tuple[Sequence[_Step], HostCopy | None]] = deque()
        self._last: _Step | None = None

    def add(self, step: int, tokens: int, metrics: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        """Record the metrics of one step.

        Args:
            step: steps done, this one included.
            tokens: SAE inputs seen, this step included.
            metrics: 0-d tensors, `loss` among them.
            known: further numbers, already on the host.
        """
        logged = step % self._log_every == 0
        self._last = _Step(step, tokens, metrics, known, logged)
        self._waiting.append(self._last)
        if logged or _on_host(metrics["loss"]) or len(self._waiting) >= CHECK_EVERY:
            self._send()

    def _send(self) -> None:
        if self._waiting:
            values = [v for step in self._waiting for v in _to_read(step).values() if not _on_host(v)]
            copy = HostCopy(torch.stack([v.float() for v in values])) if values else None
            self._sent.append((self._waiting, copy))
            self._waiting = []

    def add_final(self) -> None:
        """Log the last step even if it is not a multiple of `log_every`."""
        if self._last is not None and not self._last.logged:
            self._last = self._last._replace(logged=True)
            self._waiting.append(self._last)
            self._send()

    def collect(self, *, wait: bool = False) -> Collected:
        """Return the metrics on the host; with `wait`, those of every step."""
        if wait:
            self._send()
        points: list[MetricPoint] = []
        while self._sent and (wait or self._sent[0][1] is None or self._sent[0][1].done()):
            steps, copy = self._sent.popleft()
            numbers = iter(copy.read() if copy else [])
            for step in steps:
                point = _point(step, numbers)
                if not math.isfinite(point.values["loss"]):
                    return Collected(points, point)
                if step.logged:
                    points.append(point)
        return Collected(points, None)


def _on_host(value: Tensor) -> bool:
    return value.device.type == "cpu"


def _to_read(step: _Step) -> Mapping[str, Tensor]:
    return step.metrics if step.logged else {"loss": step.metrics["loss"]}


def _point(step: _Step, numbers: Iterator[float]) -> MetricPoint:
    values = {
        name: value.item() if _on_host(value) else next(numbers) for name, value in _to_read(step).items()
    }
    return MetricPoint(step.step, step.tokens, {**values, **step.known})
