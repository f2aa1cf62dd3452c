"""Measures how fast this machine trains SAEs and computes the products of a language model."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from sae_sweep.activations import lm_dtype, pick_device
from sae_sweep.config import RunConfig
from sae_sweep.plan.cost import TERA, SaeShape, Throughput, sae_flops, sae_shape
from sae_sweep.saes import Learner, build_sae

log = logging.getLogger(__name__)

_FEW_TOKENS = 64
"""Tokens of the first timed step, which decides how large the second can be."""
_LM_SECONDS = 0.3
_LARGEST_SAE = 2**24
"""Largest encoder that is timed, in weights; larger ones are assumed to be as fast."""


def given(tflops: float, configs: Iterable[RunConfig]) -> Throughput:
    """The same given speed for every shape."""
    shapes = [shape for config in configs if (shape := sae_shape(config))]
    return Throughput("given", dict.fromkeys(shapes, tflops), {shape.d_in: tflops for shape in shapes})


def measure(configs: Iterable[RunConfig], seconds: float = 8.0) -> Throughput:
    """Time training steps of the SAE shapes, and LM products of every width, on random numbers.

    Args:
        configs: configs of the runs; those of models with unknown width are skipped.
        seconds: approximate time limit. Shapes with the most work are timed first; those for which no time is
            left are assumed to be as fast.
    """
    work: dict[SaeShape, int] = {}
    examples: dict[SaeShape, RunConfig] = {}
    for config in configs:
        if shape := sae_shape(config):
            work[shape] = work.get(shape, 0) + (sae_flops(config) or 0)
            examples.setdefault(shape, config)
    ordered = sorted(work, key=lambda shape: work[shape], reverse=True)
    share = seconds / max(1, len(ordered))
    deadline = time.monotonic() + seconds - share
    widths = {shape.d_in: examples[shape] for shape in ordered}
    lm = {width: _lm_rate(config, width) for width, config in widths.items()}
    sae: dict[SaeShape, float] = {}
    for shape in ordered:
        if sae and time.monotonic() > deadline:
            log.info(
                "measured %d of %d SAE shapes; the others are assumed to be as fast", len(sae), len(ordered)
            )
            break
        sae[shape] = _sae_rate(examples[shape], shape, share)
    return Throughput("measured", {shape: sae.get(shape) or _mean_rate(shape, sae) for shape in ordered}, lm)


def _mean_rate(shape: SaeShape, measured: Mapping[SaeShape, float]) -> float:
    """Mean measured rate, over shapes of the same architecture if any were measured."""
    same = [rate for other, rate in measured.items() if other.architecture == shape.architecture]
    rates = same or list(measured.values())
    return sum(rates) / len(rates)


def _sae_rate(config: RunConfig, shape: SaeShape, seconds: float) -> float:
    """TFLOP/s of the training step at the run's batch size."""
    device = pick_device(config.device)
    d_sae = max(getattr(config.architecture, "k", 1), min(shape.d_sae, _LARGEST_SAE // shape.d_in))
    how = {"numerics": config.numerics, "normalisation": config.resolved_normalisation}
    sae = build_sae(config.architecture, shape.d_in, d_sae, seed=config.seed, **how)
    zero_bias = dataclasses.replace(config, init=dataclasses.replace(config.init, b_dec="zero"))
    learner = Learner(sae, zero_bias, device)

    def step(tokens: int) -> None:
        learner.step(torch.randn(tokens, shape.d_in, device=device))

    return _tokens_per_s(step, config.batch, seconds, device) * 12 * shape.d_in * d_sae / TERA


def _lm_rate(config: RunConfig, width: int) -> float:
    """TFLOP/s of the two matrix products of an MLP, in the LM's dtype."""
    device = pick_device(config.device)
    dtype = lm_dtype(config.model.dtype, device)
    up = torch.randn(width, 4 * width, device=device, dtype=dtype)
    down = up.t().contiguous()

    def multiply(tokens: int) -> None:
        _ = torch.randn(tokens, width, device=device, dtype=dtype) @ up @ down

    most = config.activations.lm_batch * config.packing.seq_len
    return _tokens_per_s(multiply, most, _LM_SECONDS, device) * 16 * width**2 / TERA


def _tokens_per_s(work: Callable[[int], None], batch: int, seconds: float, device: torch.device) -> float:
    """Tokens per second of `work`, which takes a number of tokens, at `batch` tokens.

    If that takes too long, it is extrapolated from two smaller sizes: a step has a fixed cost (Adam), which
    would dominate at one small size.
    """
    few = min(_FEW_TOKENS, batch)
    work(few)  # the first call allocates
    short = _seconds(work, few, device)
    many = min(batch, max(4 * few, int(few * seconds / (2 * short))))
    if device.type != "cpu":
        work(many)  # kernels are chosen when a size first occurs
    long = _seconds(work, many, device)
    each = (long - short) / max(1, many - few)
    if many == batch or each <= 0:
        return many / long
    return batch / (max(0.0, short - few * each) + batch * each)


def _seconds(work: Callable[[int], None], tokens: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work(tokens)
    _wait(device)
    return max(time.perf_counter() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
