"""Times training steps of our kernels, of the reference and of a dense trainer, and the language model."""

import cProfile
import pstats
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_commands import random_gpt2
from gpu_setting import Setting, Size
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from lm import passes
from step import L0, Case, learner
from timing import seconds

from sae_sweep.activations import load_language_model
from sae_sweep.config import ModelConfig

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "relu")


def steps(setting: Setting) -> None:
    """A training step of our kernels, and of the reference."""
    for size, case, x in reversed(list(cases(setting))):
        setting.put({**about(size, case), **step_record(case, x, setting.device, seconds_each(setting, 2))})


def dense(setting: Setting) -> None:
    """A dense bf16 step under torch.compile; the large size first, since compiling takes long."""
    began, longest = time.perf_counter(), 0.0
    for size, case, x in reversed(list(cases(setting))):
        started = time.perf_counter()
        if started - began + longest > setting.seconds:
            setting.put({"left_out": f"{size.name} {case.architecture}"})
            continue
        step = dense_step(case, x, setting.device)
        setting.put(
            {**about(size, case), "dense_per_s": rate(step, setting.device, seconds_each(setting, 1))}
        )
        longest = max(longest, time.perf_counter() - started)


def cases(setting: Setting) -> Iterator[tuple[Size, Case, Tensor]]:
    for size in setting.sizes:
        x = torch.randn(size.batch, size.d_in, device=setting.device)
        for architecture in ARCHITECTURES:
            active = size.k if "topk" in architecture or setting.tiny else L0
            yield size, Case(architecture, size.d_sae, active, 0.0), x


def about(size: Size, case: Case) -> dict[str, Any]:
    sizes = {"d_in": size.d_in, "d_sae": size.d_sae, "batch": size.batch}
    return {"size": size.name, "architecture": case.architecture, **sizes}


def seconds_each(setting: Setting, kinds: int) -> float:
    """Time of a measurement, so that they take half of the part's; the rest is for compiling."""
    share = 0.5 * setting.seconds / (len(setting.sizes) * len(ARCHITECTURES) * kinds)
    return min(share, 0.1 if setting.tiny else 2.0)


def step_record(case: Case, x: Tensor, device: torch.device, at_least_s: float) -> dict[str, Any]:
    fast = "triton" if device.type == "cuda" else "cpu"
    record: dict[str, Any] = {"backend": fast}
    for backend in (fast, "reference"):
        with peak_memory(device) as peak:
            one = learner(case, backend, x, str(device))
            record[f"{backend}_per_s"] = rate(lambda one=one: one.step(x), device, at_least_s)
            if backend == fast:
                record["host_waits"] = host_waits(lambda one=one: one.step(x), device)
                record |= on_device(lambda one=one: one.step(x), device)
                record["host"] = on_host(lambda one=one: one.step(x))
            record[f"{backend}_peak_gib"] = peak()
    per_s = record[f"{fast}_per_s"]
    device_ms = record["device_ms"]
    return record | {
        "busy": None if device_ms is None else device_ms / 1000 * per_s,
        "steps_per_s": per_s,
        "tokens_per_s": len(x) * per_s,
        "ratio_to_reference": per_s / record["reference_per_s"],
    }


def rate(work: Callable[[], Any], device: torch.device, at_least_s: float) -> float:
    """Times per second of work that the host queues freely and waits for at the end."""
    for _ in range(3):
        work()
    count = 1
    while True:
        took = seconds(lambda count=count: [work() for _ in range(count)], device)
        if took >= at_least_s / 3:
            return count / took
        count *= 2


def host_waits(work: Callable[[], Any], device: torch.device, times: int = 10) -> float | None:
    """How often the host waits for the device each time; None where there is nothing to wait for."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        return count_warnings(lambda: [work() for _ in range(times)], "synchronizing") / times
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_device(work: Callable[[], Any], device: torch.device, times: int = 10) -> dict[str, Any]:
    """Milliseconds that the device computes each time, launches, and the kernels that take longest."""
    if device.type != "cuda":
        return {"device_ms": None}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            work()
        torch.cuda.synchronize(device)
    kernels = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
    return {
        "device_ms": sum(one.self_device_time_total for one in kernels) / 1000 / times,
        "launches": sum(one.count for one in kernels) / times,
        "longest": [
            {
                "kernel": one.key[:60],
                "ms": one.self_device_time_total / 1000 / times,
                "count": one.count / times,
            }
            for one in kernels[:8]
        ],
    }


def on_host(work: Callable[[], Any], times: int = 20) -> list[dict[str, Any]]:
    """The functions in which the host itself spends most time, as a profiler sees them."""
    profile = cProfile.Profile()
    profile.runcall(lambda: [work() for _ in range(times)])
    found = sorted(pstats.Stats(profile).stats.items(), key=lambda item: -item[1][2])[:12]  # type: ignore[attr-defined]
    return [
        {"function": f"{Path(file).name}:{line} {name}", "ms": own * 1000 / times, "calls": calls / times}
        for (file, line, name), (_, calls, own, _, _) in found
    ]


def count_warnings(work: Callable[[], Any], word: str) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return sum(word in str(one.message) for one in caught)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Give a function that returns the device's peak memory in GiB until then; None on a CPU."""
    if device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) / 2**30


def dense_step(case: Case, x: Tensor, device: torch.device) -> Callable[[], None]:
    """The usual trainer: dense bfloat16 products under torch.compile, without AuxK or normalisation."""
    d_in = x.shape[1]
    W_enc = nn.Parameter(torch.randn(d_in, case.d_sae, device=device) / d_in**0.5)
    W_dec = nn.Parameter(W_enc.detach().t().contiguous())
    b_enc, b_dec = (nn.Parameter(torch.zeros(n, device=device)) for n in (case.d_sae, d_in))
    z = (x @ W_enc.detach()).flatten()
    level = float(z.topk(case.k * len(x)).values.min())
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=1e-12, fused=True)

    def activate(z: Tensor) -> Tensor:
        if case.architecture == "topk":
            top = z.topk(case.k, dim=-1, sorted=False)
            return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())
        if case.architecture == "batchtopk":
            top = z.flatten().topk(case.k * len(z), sorted=False)
            return torch.zeros_like(z.flatten()).scatter(0, top.indices, top.values.relu()).view_as(z)
        return z * (z > level) if case.architecture == "jumprelu" else (z - level).relu()

    def loss(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            f = activate((x - b_dec) @ W_enc + b_enc)
            reconstruction = f @ W_dec + b_dec
        return (reconstruction.float() - x).square().mean() + 1e-3 * f.float().abs().sum() / len(x)

    # without a GPU only tracing is tested: generating code for a CPU takes a minute
    torch.compiler.reset()  # after a few variants of one function it would no longer compile
    backend = "inductor" if device.type == "cuda" else "eager"
    compiled = torch.compile(loss, backend=backend, fullgraph=True)

    def step() -> None:
        compiled(x).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def language_models(setting: Setting) -> None:
    """The pass of the bundled model, and of GPT-2 small's shape, up to a layer."""
    with tempfile.TemporaryDirectory() as folder:
        gpt2 = random_gpt2(Path(folder), tiny=setting.tiny)
        for name, path, layer in (
            ("gpt2-pico", "bundled:gpt2-pico", 6),
            ("gpt2-small", str(gpt2.path), gpt2.layer),
        ):
            model = load_language_model(ModelConfig(path=path), setting.device)
            batch = 2 if setting.tiny else 64
            tokens = torch.randint(1, 4096, (batch, 128), generator=torch.Generator().manual_seed(0))
            median = passes({model.attention: model}, tokens, layer, repeats=2 if setting.tiny else 20)
            setting.put(
                {
                    "model": name,
                    "layer": layer,
                    "attention": model.attention,
                    "dtype": str(model.dtype).removeprefix("torch."),
                    "tokens_per_s": tokens.numel() / statistics.fmean(median.values()),
                }
            )
