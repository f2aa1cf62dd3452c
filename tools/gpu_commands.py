"""Parts of tools/gpu_check.py that type commands: equal bits, whole sweeps, the tests of the kernels."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_setting import Cut, Setting
from pyarrow import parquet

ROOT = Path(__file__).parents[1]
PICO = ROOT / "sae_sweep" / "assets" / "gpt2-pico"
BITS = [
    *("model=gpt2-pico", "dataset=stdlib_docs", "layer=2", "dictionary=4", "batch=512", "seed=42,49"),
    *("activations.buffer_tokens=16_384", "evaluation.tokens=2_048", "tracking.log_every=10"),
]
_APART = 0.01
"""Largest difference of a feature's statistics, or of a measure, on the device and on the CPU."""
_STATISTICS = ("density", "mean", "position_share", "position_share_zero")
TINY_SWEEP = ["tokens=2_048", "evaluation.tokens=512", "activations.buffer_tokens=4_096"]


class CommandError(Exception):
    """A command did not do what it should; the message ends with the end of its output."""


class RandomModel(NamedTuple):
    path: Path
    layer: int
    """Layer that is read."""


def random_gpt2(folder: Path, *, tiny: bool) -> RandomModel:
    """Write a model of GPT-2 small's shape with random weights, and the bundled tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads = (2, 48, 4) if tiny else (12, 768, 12)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=4096, bos_token_id=0, eos_token_id=0
    )
    path = folder / "gpt2-random"
    GPT2LMHeadModel(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PICO / name, path / name)
    return RandomModel(path, layers - 1 if tiny else 8)


def bits(setting: Setting) -> None:
    """Runs trained together, one by one, and resumed after a stop have the same weights."""
    kinds, tokens = ("topk", 10_240) if setting.tiny else ("topk,jumprelu", 20_480)
    words = [*BITS, f"architecture={kinds}", f"tokens={tokens}"]
    with _sweeps(setting) as sweeps:
        fused = sweeps.train("fused", words)
        _require_equal(fused, sweeps.train("solo", [*words, "fuse=false"]), "one by one")
        setting.put({"equal": "fused = solo", "runs": len(fused)})
        _require_equal(fused, sweeps.train_with_a_stop("resumed", words), "resumed")
        setting.put({"equal": "fused = resumed", "runs": len(fused)})


def quickstart(setting: Setting) -> None:
    """`experiment=quickstart` with fewer tokens."""
    tiny = ["dataset=stdlib_docs", "architecture=topk", *TINY_SWEEP]
    _sweep(setting, ["experiment=quickstart", *(tiny if setting.tiny else ["tokens=200_000"])])


def gpt2_small(setting: Setting) -> None:
    """Two architectures x two seeds at GPT-2 small's shape, from text to match."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_gpt2(Path(folder), tiny=setting.tiny)
        words = [f"model.path={model.path}", "model.name=gpt2-random", f"layer={model.layer}"]
        words += ["dataset=stdlib_docs", "architecture=topk,jumprelu", "seed=42,49"]
        if setting.tiny:
            words += ["dictionary=4", "batch=128", *TINY_SWEEP]
        else:
            words += ["tokens=2_000_000", "evaluation.tokens=40_000"]
        _sweep(setting, words)


def analyse(setting: Setting) -> None:
    """`task=analyse` and `task=match` find the same on the device and on the CPU."""
    with _sweeps(setting) as sweeps:
        words = [*BITS, "seed=42", "model.dtype=float32", "architecture=topk,jumprelu"]
        sweeps.train("sweep", [*words, f"tokens={2_048 if setting.tiny else 102_400}"])
        task = ["task=analyse", "analysis.positions=both", "figures=none"]
        task += [f"analysis.tokens={1_000 if setting.tiny else 10_000}"]
        began = time.perf_counter()
        ours = sweeps.analysis("sweep", task)
        seconds = time.perf_counter() - began
        theirs = sweeps.analysis("sweep", [*task, "device=cpu"])
        for run, (table, other) in {run: (ours[run], theirs[run]) for run in ours}.items():
            often = np.minimum(table["active"], other["active"]) >= 20
            _require_near(setting, f"analyse, {run}", seconds, table, other, _STATISTICS, often)
        match = ["task=match", "matching.measures=all"]
        began = time.perf_counter()
        found = sweeps.measures("sweep", match)
        seconds = time.perf_counter() - began
        other = sweeps.measures("sweep", [*match, "device=cpu"])
        _require_near(setting, "match", seconds, found, other, ("value", "null"), slice(None))


def _require_near(
    setting: Setting,
    what: str,
    seconds: float,
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    names: Sequence[str],
    rows: Any,
) -> None:
    apart = {name: float(np.abs(ours[name] - theirs[name])[rows].max()) for name in names}
    setting.put({"apart_by_device": what, "seconds": seconds, "apart": apart})
    if not max(apart.values()) < _APART:
        raise CommandError(f"task={what} differs on the device and on the CPU: {apart}")


def suite(setting: Setting) -> None:
    """The tests of ops/, which use the GPU where there is one."""
    missing = [
        name for name in ("pytest", "hypothesis", "typeguard") if importlib.util.find_spec(name) is None
    ]
    if missing:
        setting.put({"skipped": f"{' and '.join(missing)} not installed; the part `kernels` does without"})
        return
    tiny = ["tests/ops/test_kernels.py", "-k", "test_topk_of_many_ties and reference"]
    which = tiny if setting.tiny else ["tests/ops/test_kernels.py", "tests/ops/test_triton.py"]
    if not setting.tiny and importlib.util.find_spec("xdist"):
        which += ["-n", "6"]
    command = [sys.executable, "-m", "pytest", "-v", "--durations=5", "-p", "no:cacheprovider"]
    command += ["-p", "no:benchmark", *which]  # that plugin warns beside xdist, and warnings are errors
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=out, stderr=out)
        try:
            code = process.wait()
        except Cut:
            process.kill()
            out.seek(0)
            raise Cut(out.read()[-4000:]) from None
        out.seek(0)
        text = out.read()
    last = next(reversed(text.strip().splitlines()), "no output")
    if code:
        raise CommandError(f"pytest: {last}\n{text[-8000:]}")
    setting.put({"suite": last.strip("= "), "seconds": time.perf_counter() - began})


def _sweep(setting: Setting, words: Sequence[str]) -> None:
    with _sweeps(setting) as sweeps:
        began = time.perf_counter()
        runs = sweeps.train("sweep", words)
        wall_s = time.perf_counter() - began
        folder = sweeps.folder / "out" / "sweep"
        if not list((folder / "analysis").rglob("*")):
            raise CommandError(f"{folder / 'analysis'} is empty: the SAEs were not compared")
        statuses = [json.loads((folder / name / "status.json").read_text()) for name in runs]
        metrics = [json.loads((folder / name / "metrics.json").read_text()) for name in runs]
        tokens = sum(status["tokens"] for status in statuses)
        setting.put(
            {
                "runs": len(runs),
                "wall_s": wall_s,
                "sae_tokens": tokens,
                "training_s": max(status["seconds"] for status in statuses),
                "sae_tokens_per_s": tokens / wall_s,
                "explained_variance": [round(one["explained_variance"], 4) for one in metrics],
            }
        )


class _Sweeps:
    """Sweeps in a folder of their own."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self._device = device

    def train(self, sweep: str, words: Sequence[str]) -> dict[str, bytes]:
        """Train a sweep; returns each run's weights as they are on disk."""
        process = self._start(sweep, words)
        if self._wait(process, sweep, words):
            raise CommandError(self._account(process.returncode, sweep, words))
        files = sorted((self.folder / "out" / sweep).glob("*/sae/sae_weights.safetensors"))
        if not files:
            raise CommandError(self._account(process.returncode, sweep, words))
        return {file.parents[1].name: file.read_bytes() for file in files}

    def train_with_a_stop(self, sweep: str, words: Sequence[str]) -> dict[str, bytes]:
        """Stop it as soon as a checkpoint is there, then train it to its end."""
        process = self._start(sweep, [*words, "launcher.checkpoint_every_min=0.0001"])
        while process.poll() is None and not list((self.folder / "out" / sweep).glob("*/checkpoint/*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        if self._wait(process, sweep, words) != 128 + signal.SIGTERM:
            raise CommandError(self._account(process.returncode, sweep, words))
        return self.train(sweep, words)

    def analysis(self, sweep: str, words: Sequence[str]) -> dict[str, Any]:
        """Run `task=analyse` on a sweep; returns each run's table of features, as columns."""
        process = self._start(sweep, words)
        if self._wait(process, sweep, words):
            raise CommandError(self._account(process.returncode, sweep, words))
        files = sorted((self.folder / "out" / sweep).glob("*/features/firing.parquet"))
        return {file.parents[1].name: _columns(file, ("active", *_STATISTICS)) for file in files}

    def measures(self, sweep: str, words: Sequence[str]) -> dict[str, np.ndarray]:
        """Run `task=match` on a sweep; returns the table of measures, as columns."""
        process = self._start(sweep, words)
        if self._wait(process, sweep, words):
            raise CommandError(self._account(process.returncode, sweep, words))
        folder = self.folder / "out" / sweep / "analysis" / "matching"
        return _columns(folder / "measures.parquet", ("value", "null"))

    def _start(self, sweep: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        common = [f"device={self._device}", "tracking=none", f"paths.output={self.folder / 'out'}"]
        command = [sys.executable, "-m", "sae_sweep", *common, f"sweep={sweep}", *words]
        with (self.folder / f"{sweep}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=_environment(), stdout=log, stderr=log)

    def _wait(self, process: subprocess.Popen[bytes], sweep: str, words: Sequence[str]) -> int:
        """Its exit code. When the time is up, it writes its stacks and ends."""
        try:
            return process.wait()
        except Cut:
            process.send_signal(signal.SIGABRT)
            raise Cut(self._account(process.wait(), sweep, words)) from None

    def _account(self, code: int, sweep: str, words: Sequence[str]) -> str:
        """The command, the end of what it printed, and what its runs' logs say of faults."""
        ends = [(self.folder / f"{sweep}.log").read_text(errors="replace")[-4000:]]
        logs = sorted((self.folder / "out" / sweep).glob("*/train.log"))
        ends += [
            text[-3000:] for text in (log.read_text(errors="replace") for log in logs) if "Error" in text
        ]
        return f"exit code {code}: python -m sae_sweep {' '.join(words)}\n" + "\n".join(ends[:3])


@contextmanager
def _sweeps(setting: Setting) -> Iterator[_Sweeps]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield _Sweeps(Path(folder), setting.device.type)


def _columns(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    table = parquet.read_table(file, columns=list(names))
    return {name: table[name].to_numpy() for name in table.column_names}


def _environment() -> dict[str, str]:
    """This checkout before an installed package; no network."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    said = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, "PYTHONPATH": path, **said}


def _require_equal(ours: dict[str, bytes], theirs: dict[str, bytes], how: str) -> None:
    differ: list[Any] = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if differ:
        names = ", ".join(differ)
        raise CommandError(f"{how}, {len(differ)} of {len(ours)} runs have other weights: {names}")
