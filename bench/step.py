"""Time of one SAE training step per backend, against the reference in the same process.

    python bench/step.py [--json FILE]                     residuals of the bundled gpt2-pico
    python bench/step.py --model SmolLM2.gguf --layers 12  residuals of another model

Every figure is the median over `--repeats` rounds in which each backend does one step in turn. A step is all
that training does with a batch: normalise, loss, backward, Adam, decoder norms, metrics. The last column
divides its time by that of the encoder's dense product x @ W_enc alone, memory allocation included.
"""

import argparse
import json
import logging
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recorded import BUNDLED, Recorded, load, record
from timing import seconds

from sae_sweep.config import (
    ArchitectureConfig,
    BatchTopKConfig,
    JumpReLUConfig,
    OptimizerConfig,
    ReLUConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.saes import Learner, build_sae

L0 = 45
"""Active features per token of JumpReLU and ReLU."""
TOKENS = 10**9
"""Token budget, so large that no feature counts as dead."""


@dataclass(frozen=True)
class Case:
    architecture: str
    d_sae: int
    k: int
    dead: float
    """Share of dead features, which make AuxK act."""


def cases(sizes: list[int], ks: list[int]) -> Iterator[Case]:
    for d_sae in sizes:
        for k in ks:
            yield Case("topk", d_sae, k, 0.0)
            yield Case("batchtopk", d_sae, k, 0.0)
        yield Case("topk", d_sae, ks[0], 0.3)
        yield Case("batchtopk", d_sae, ks[0], 0.3)
        yield Case("jumprelu", d_sae, L0, 0.0)
        yield Case("relu", d_sae, L0, 0.0)


def learner(case: Case, backend: str, x: torch.Tensor, device: str) -> Learner:
    """A new learner with its L0 and dead features set, and a learning rate too small to change them."""
    kinds: dict[str, ArchitectureConfig] = {
        "topk": TopKConfig(k=case.k),
        "batchtopk": BatchTopKConfig(k=case.k),
        "jumprelu": JumpReLUConfig(),
        "relu": ReLUConfig(),
    }
    d_in = x.shape[1]
    architecture = kinds[case.architecture]
    sae = build_sae(architecture, d_in, case.d_sae, seed=0, numerics="modern").to(device)
    config = RunConfig(
        architecture=architecture,
        dictionary=-(-case.d_sae // d_in),
        tokens=TOKENS,
        batch=len(x),
        backend=backend,
        optimizer=OptimizerConfig(lr=1e-12),
    )
    dead = int(case.dead * case.d_sae)
    with torch.no_grad():
        sae.W_enc[:, :dead] *= 1e-3
        if case.architecture in ("jumprelu", "relu"):
            z = sae.pre_activations(sae.normalise(x[:512]).x)
            level = z.flatten().topk(case.k * len(z)).values.min()
            if case.architecture == "relu":
                sae.b_enc -= level
            else:
                sae.threshold.fill_(level)
    one = Learner(sae, config, device)
    one._objective.silent[:dead] = one._objective.dead_after
    return one


def measure(
    case: Case, x: torch.Tensor, backends: list[str], device: str, repeats: int
) -> list[dict[str, Any]]:
    learners = {backend: learner(case, backend, x, device) for backend in backends}
    last = {backend: one.step(x) for backend, one in learners.items()}
    W_enc = learners[backends[0]].sae.W_enc.detach()
    times: dict[str, list[float]] = {name: [] for name in (*backends, "encoder")}
    for _ in range(repeats):
        for backend, one in learners.items():
            times[backend].append(seconds(lambda one=one: one.step(x), x.device))
        times["encoder"].append(seconds(lambda: x @ W_enc, x.device))
    medians = {name: statistics.median(each) for name, each in times.items()}
    return [
        {
            "architecture": case.architecture,
            "d_in": x.shape[1],
            "d_sae": case.d_sae,
            "k": case.k if "topk" in case.architecture else None,
            "l0": round(float(last[backend]["l0"]), 1),
            "dead_share": float(last[backend]["dead"]) / case.d_sae,
            "batch": len(x),
            "backend": backend,
            "device": device,
            "seconds": medians[backend],
            "tokens_per_s": len(x) / medians[backend],
            "ratio_to_reference": medians["reference"] / medians[backend],
            "ratio_to_encoder": medians[backend] / medians["encoder"],
        }
        for backend in backends
    ]


_COLUMNS = "{:10} {:>6} {:>6} {:>5} {:>9} {:>9} {:>10} {:>9} {:>9}"


def show(records: list[dict[str, Any]]) -> None:
    for r in records:
        print(
            _COLUMNS.format(
                *(r["architecture"], r["d_sae"], r["l0"], f"{r['dead_share']:.0%}", r["backend"]),
                *(f"{1e3 * r['seconds']:.1f}", f"{r['tokens_per_s']:,.0f}"),
                *(f"{r['ratio_to_reference']:.1f}x", f"{r['ratio_to_encoder']:.2f}x"),
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=BUNDLED, help="folder or GGUF file of a language model")
    parser.add_argument("--layers", default="3,4,5,6,7,8", help="layers whose residuals are concatenated")
    parser.add_argument("--activations", type=Path, help="a safetensors file with [tokens, d], instead")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", default="3072,6144,12288")
    parser.add_argument("--k", default="16,32,64")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--only", default="", help="architectures, comma-separated; all by default")
    parser.add_argument("--backends", default="", help="by default reference and the device's fast one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    data = _recorded(keys)
    x = data.x[: keys.batch].to(keys.device)
    backends = keys.backends.split(",") if keys.backends else ["reference", _fast(keys.device)]
    print(f"{data.label}; {len(x)} tokens")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {keys.device}"
    )
    print(_COLUMNS.format("", "d_sae", "L0", "dead", "backend", "ms", "tokens/s", "reference", "encoder"))
    records = []
    for case in cases(_numbers(keys.d_sae), _numbers(keys.k)):
        if not keys.only or case.architecture in keys.only.split(","):
            found = measure(case, x, backends, keys.device, keys.repeats)
            show(found)
            records += found
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")


def _recorded(keys: argparse.Namespace) -> Recorded:
    if keys.activations:
        return load(keys.activations, keys.d_in)
    return record(keys.model, _numbers(keys.layers), keys.batch, keys.d_in)


def _fast(device: str) -> str:
    return "triton" if device == "cuda" else "cpu"


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
