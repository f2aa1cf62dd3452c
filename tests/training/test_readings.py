"""Metrics from a device reach the log late, but complete and in order."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_sweep.training import readings
from sae_sweep.training.readings import CHECK_EVERY, HostCopy, Readings


@pytest.fixture
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat all metrics except lr as if they were on a device, where reading them would wait."""
    monkeypatch.setattr(readings, "_on_host", lambda value: value.dtype == torch.float64)


def add(queue: Readings, step: int, loss: float) -> None:
    metrics = {"loss": torch.tensor(loss), "dead": torch.tensor(step), "lr": torch.tensor(0.5).double()}
    queue.add(step, 10 * step, metrics, {"epochs": step / 2})


@pytest.mark.usefixtures("_device")
@given(
    steps=st.integers(1, 130),
    log_every=st.integers(1, 70),
    bad=st.none() | st.integers(1, 130),
    looks=st.sets(st.integers(1, 130)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_doubled_or_logged_after_a_bad_loss(
    steps: int, log_every: int, bad: int | None, looks: set[int]
) -> None:
    queue, points, diverged = Readings(log_every), [], None
    for step in range(1, steps + 1):
        add(queue, step, math.nan if step == bad else float(step))
        if step in looks and diverged is None:
            arrived = queue.collect()
            points += arrived.points
            diverged = arrived.diverged
    if diverged is None:
        queue.add_final()
        arrived = queue.collect(wait=True)
        points += arrived.points
        diverged = arrived.diverged
    good = steps if bad is None or bad > steps else bad - 1
    expected = [step for step in range(1, good + 1) if step % log_every == 0 or step == steps]
    assert [point.step for point in points] == expected
    for point in points:
        assert point.tokens == 10 * point.step
        assert point.values == {
            "loss": point.step,
            "dead": point.step,
            "lr": 0.5,
            "epochs": point.step / 2,
        }
    assert (diverged.step if diverged else None) == (bad if good < steps else None)


@pytest.mark.usefixtures("_device")
def test_the_host_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = False
    monkeypatch.setattr(HostCopy, "done", lambda self: ready)
    queue = Readings(log_every=2)
    for step in range(1, 5):
        add(queue, step, 1.0)
    assert queue.collect().points == []
    ready = True
    assert [point.step for point in queue.collect().points] == [2, 4]


@pytest.mark.usefixtures("_device")
def test_a_bad_loss_is_noticed_between_logged_points() -> None:
    queue = Readings(log_every=10_000)
    for step in range(1, CHECK_EVERY):
        add(queue, step, math.inf if step == 3 else 1.0)
        assert queue.collect().diverged is None
    add(queue, CHECK_EVERY, 1.0)
    diverged = queue.collect().diverged
    assert diverged is not None
    assert diverged.step == 3


def test_on_the_cpu_a_bad_loss_is_noticed_at_once() -> None:
    queue = Readings(log_every=10_000)
    queue.add(1, 10, {"loss": torch.tensor(math.nan)}, {})
    assert queue.collect().diverged is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_from_the_gpu_arrives() -> None:
    copy = HostCopy(torch.arange(3.0, device="cuda"))
    assert copy.read() == [0.0, 1.0, 2.0]
    assert copy.done()
