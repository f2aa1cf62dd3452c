"""Hours that the study's SAEs would take on this machine, estimated from parts measured here.

    python bench/study.py [--json FILE]       experiment=paper: 73 SAEs in 4 passes of the language model
    python bench/study.py budget=published    the same with other keys of its plan

`task=plan` counts the work. Every part is timed on few tokens, with the code that a sweep runs, and
multiplied: a pass of a GPT-2-shaped model (random weights, `--lm-batch` sequences of 128); a training step of
each architecture, size and k on that model's residuals, with a share `--dead` of the features of TopK and
BatchTopK dead, so that AuxK acts, and JumpReLU at an L0 of 45; the evaluation of an SAE of each size; and the
matching of two SAEs. Fused is one LM pass per group, solo one per run.
"""

import argparse
import itertools
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import fail, positive, seconds
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from sae_sweep.activations import LanguageModel, load_language_model, pick_device
from sae_sweep.activations.model_files import ASSETS
from sae_sweep.analysis import match
from sae_sweep.analysis.evaluation import evaluate
from sae_sweep.analysis.losses import Baselines, language_model_baselines
from sae_sweep.config import (
    BatchTopKConfig,
    EvaluationConfig,
    JumpReLUConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.saes import Learner, build_sae

BLOCKS = 12
VOCABULARY = 50_257
SEQ_LEN = 128
L0 = 45
NOT_INCLUDED = (
    "loading, tokenisation (bench/lm.py has its share), shuffling, checkpoints, tracking, the bootstrap "
    "and figures of the comparison, downloads"
)

Shape = tuple[str, int, int | None]
"""Architecture, d_sae, k."""


@dataclass(frozen=True)
class Part:
    """Time and counts of one kind of work."""

    part: str
    detail: str
    seconds_each: float
    """Measured, or scaled from a measurement."""
    of: str
    """Unit of `seconds_each` and of the counts."""
    count_fused: float
    count_solo: float

    @property
    def hours_fused(self) -> float:
        return self.seconds_each * self.count_fused / 3600

    @property
    def hours_solo(self) -> float:
        return self.seconds_each * self.count_solo / 3600


class Plan:
    """The runs and groups that `task=plan` lists."""

    def __init__(self, overrides: list[str]) -> None:
        command = [sys.executable, "-m", "sae_sweep", "task=plan", "format=json", "plan.tflops=1"]
        if not any(word.startswith("experiment=") for word in overrides):
            command.append("experiment=paper")
        done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
            raise SaeSweepError(said.removeprefix("sae_sweep: "))
        document = json.loads(done.stdout)
        self.runs: list[dict[str, Any]] = document["runs"]
        self.groups: list[dict[str, Any]] = document["groups"]
        unknown = {run["architecture"] for run in self.runs} - {"topk", "batchtopk", "jumprelu"}
        if unknown or None in (run["d_sae"] for run in self.runs):
            raise SaeSweepError("only topk, batchtopk and jumprelu SAEs of a model of known width are timed")
        widths = {run["d_sae"] // run["dictionary"] for run in self.runs}
        if len(widths) > 1:
            raise SaeSweepError("the runs of more than one language model cannot be timed at once")
        self.d_in: int = widths.pop()

    def steps(self, batch: int) -> Counter[Shape]:
        """Training steps of each shape."""
        steps: Counter[Shape] = Counter()
        for run in self.runs:
            steps[run["architecture"], run["d_sae"], run["k"]] += run["tokens"] // batch
        return steps

    def lm_tokens(self) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
        """Tokens that the LM reads per set of layers: fused, and solo."""
        fused: Counter[tuple[int, ...]] = Counter()
        solo: Counter[tuple[int, ...]] = Counter()
        tokens = {run["name"]: run["tokens"] for run in self.runs}
        layers = {run["name"]: run["layer"] for run in self.runs}
        for group in self.groups:
            fused[tuple(group["layers"])] += group["lm_tokens"]
            for name in group["runs"]:
                solo[(layers[name],)] += tokens[name] * group["lm_tokens_solo"] // group["sae_tokens"]
        return fused, solo


def shaped_like_gpt2(d_model: int, device: torch.device) -> LanguageModel:
    """A GPT-2-shaped model with random weights, in the dtype and attention of a real one."""
    torch.manual_seed(0)
    heads = max(1, d_model // 64)
    shape = GPT2Config(n_layer=BLOCKS, n_embd=d_model, n_head=heads, vocab_size=VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(shape).save_pretrained(folder)
        AutoTokenizer.from_pretrained(ASSETS / "gpt2-pico").save_pretrained(folder)
        return load_language_model(ModelConfig(path=folder), device)


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`, after one warm-up call."""
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def random_tokens(sequences: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (sequences, SEQ_LEN), generator=generator)


def lm_parts(plan: Plan, lm: LanguageModel, batch: int, repeats: int) -> Iterable[Part]:
    tokens = random_tokens(batch)
    fused, solo = plan.lm_tokens()
    for layers in sorted(fused | solo):
        each = median_seconds(lambda layers=layers: lm.residuals(tokens, layers), lm.device, repeats)
        read = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        yield Part("LM pass", read, each / tokens.numel(), "token", fused[layers], solo[layers])


def learner(shape: Shape, x: Tensor, dead: float) -> Learner:
    """A learner in the state to be timed, with a learning rate too small to leave it."""
    kind, d_sae, k = shape
    architecture = {"topk": TopKConfig, "batchtopk": BatchTopKConfig, "jumprelu": JumpReLUConfig}[kind]()
    if k is not None:
        architecture = type(architecture)(k=k)
    sae = build_sae(architecture, x.shape[1], d_sae, seed=0, numerics="study").to(x.device)
    silenced = int(dead * d_sae) if k is not None else 0
    with torch.no_grad():
        sae.W_enc[:, :silenced] *= 1e-3
        if k is None:
            few = x[:512]
            z = sae.pre_activations(sae.normalise(few).x)
            sae.threshold.fill_(z.flatten().topk(L0 * len(few)).values.min())
    config = RunConfig(
        architecture=architecture,
        dictionary=d_sae // x.shape[1],
        tokens=10**9,
        batch=len(x),
        numerics="study",
        optimizer=OptimizerConfig(lr=1e-12),
    )
    one = Learner(sae, config, x.device)
    _set_dead(one, silenced)
    return one


def _order(item: tuple[Shape, int]) -> tuple[str, int, int]:
    (kind, d_sae, k), _ = item
    return kind, d_sae, k or 0


def _set_dead(one: Learner, count: int) -> None:
    one._objective.silent.zero_()
    one._objective.silent[:count] = one._objective.dead_after


def step_parts(plan: Plan, x: Tensor, dead: float, repeats: int) -> Iterable[Part]:
    for shape, steps in sorted(plan.steps(len(x)).items(), key=_order):
        kind, d_sae, k = shape
        one = learner(shape, x, dead)
        silenced = int(dead * d_sae) if k is not None else 0
        metrics = one.step(x)
        each = []
        for _ in range(repeats):
            _set_dead(one, silenced)
            each.append(seconds(lambda one=one: one.step(x), x.device))
        detail = f"{kind} {d_sae}, L0 {float(metrics['l0']):.0f}, {float(metrics['dead']) / d_sae:.0%} dead"
        yield Part("SAE step", detail, statistics.median(each), f"step of {len(x):,}", steps, steps)


def evaluation_parts(plan: Plan, lm: LanguageModel, sequences: int) -> Iterable[Part]:
    tokens = random_tokens(sequences).numpy().astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    scale = EvaluationConfig().tokens / tokens.size
    layer = statistics.mode(run["layer"] for run in plan.runs)
    lm.losses(random_tokens(1))  # warm

    found: list[Baselines] = []
    once = seconds(
        lambda: found.append(language_model_baselines(lm, tokens, layer, mask, lm.device)), lm.device
    )
    shared = sum(len(group["layers"]) for group in plan.groups)
    yield Part("evaluation", "baselines per layer", once * scale, "layer", shared, len(plan.runs))
    for d_sae, runs in sorted(Counter(run["d_sae"] for run in plan.runs).items()):
        sae = build_sae(TopKConfig(k=16), plan.d_in, d_sae, seed=0, numerics="study").to(lm.device)
        work = lambda sae=sae: evaluate(sae, lm, tokens, layer, mask, baselines=found[0])  # noqa: E731
        yield Part("evaluation", f"{d_sae} features", seconds(work, lm.device) * scale, "SAE", runs, runs)


def matching_part(plan: Plan, device: torch.device, repeats: int) -> Part:
    """All pairs, and each SAE with its initial dictionary, in units of a match of two smallest SAEs."""
    sizes = [run["d_sae"] for run in plan.runs]
    unit = min(sizes)
    one, other = (torch.randn(unit, plan.d_in, device=device) for _ in range(2))
    density = torch.ones(unit)
    each = median_seconds(
        lambda: match(one, other, densities_a=density, densities_b=density), device, repeats
    )
    products = sum(a * b for a, b in itertools.combinations(sizes, 2)) + sum(a * a for a in sizes)
    pairs = len(sizes) * (len(sizes) - 1) // 2
    count = products / unit**2
    return Part("matching", f"{pairs:,} pairs, {len(sizes)} starts", each, f"{unit} by {unit}", count, count)


_COLUMNS = "{:10} {:34} {:>11} {:18} {:>13} {:>8} {:>10}"


_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def show(part: Part) -> None:
    each = part.seconds_each
    scale, unit = next((scale, unit) for scale, unit in _UNITS if each >= scale or scale == 1e-6)
    shown = f"{each / scale:.1f} {unit}"
    print(
        _COLUMNS.format(
            *(part.part, part.detail, shown, "per " + part.of, f"{part.count_fused:,.0f}"),
            *(f"{part.hours_fused:.2f}", f"{part.hours_solo:.2f}"),
        ),
        flush=True,
    )


def measure(keys: argparse.Namespace) -> list[Part]:
    plan = Plan(keys.overrides)
    device = pick_device("auto")
    lm = shaped_like_gpt2(plan.d_in, device)
    print(
        f"{len(plan.runs)} SAEs in {len(plan.groups)} LM passes; LM of {BLOCKS} x {plan.d_in} in "
        f"{str(lm.dtype).removeprefix('torch.')}, {lm.attention} attention, on {device}"
    )
    print(_COLUMNS.format("part", "", "measured", "", "times", "h fused", "h solo"))
    layer = statistics.mode(run["layer"] for run in plan.runs)
    residuals = [
        lm.residuals(part, [layer])[layer].flatten(0, 1).float()
        for part in random_tokens(-(-keys.batch // SEQ_LEN)).split(keys.lm_batch)
    ]
    x = torch.cat(residuals)[: keys.batch]
    parts = []
    for part in itertools.chain(
        lm_parts(plan, lm, keys.lm_batch, keys.repeats),
        step_parts(plan, x, keys.dead, keys.repeats),
        evaluation_parts(plan, lm, keys.lm_batch),
        [matching_part(plan, device, keys.repeats)],
    ):
        show(part)
        parts.append(part)
    return parts


def total(parts: Iterable[Part]) -> dict[str, dict[str, float]]:
    """Hours per kind of work, and in total."""
    hours: dict[str, dict[str, float]] = {}
    for part in parts:
        for name in (part.part, "total"):
            sums = hours.setdefault(name, {"hours_fused": 0.0, "hours_solo": 0.0})
            sums["hours_fused"] += part.hours_fused
            sums["hours_solo"] += part.hours_solo
    return {**{name: sums for name, sums in hours.items() if name != "total"}, "total": hours["total"]}


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a share")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="keys of the plan, such as tokens=10_000_000")
    parser.add_argument("--batch", type=positive, default=4096, help="tokens per training step")
    parser.add_argument(
        "--lm-batch", type=positive, default=64 if torch.cuda.is_available() else 8, help="sequences per pass"
    )
    parser.add_argument("--dead", type=share, default=0.3, help="share of dead features (default 0.3)")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine)
    try:
        parts = measure(keys)
    except SaeSweepError as error:
        fail(error)
    totals = total(parts)
    for name, sums in totals.items():
        print(f"{name:10} {sums['hours_fused']:.2f} h fused, {sums['hours_solo']:.2f} h solo")
    print(f"not included: {NOT_INCLUDED}")
    if keys.json:
        records = [
            {**asdict(part), "hours_fused": part.hours_fused, "hours_solo": part.hours_solo} for part in parts
        ]
        document = {
            "machine": machine,
            "batch": keys.batch,
            "dead": keys.dead,
            "parts": records,
            "hours": totals,
            "not_included": NOT_INCLUDED,
        }
        keys.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
