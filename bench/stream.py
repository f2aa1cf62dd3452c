"""Time saved by sharing: 8 SAEs fused against one by one, and the cache against a bare read of its bytes.

    python bench/stream.py [--json FILE]

Both sides of a ratio are measured in this process, in turn; medians of `--repeats` pairs. The language model
is the bundled gpt2-pico, the text the standard library's documentation. The activation cache is read from
the page cache, and from the disk (`cold`).
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sae_sweep.activations import ActivationStream, LanguageModel, load_language_model, pick_device
from sae_sweep.activations.cache import CachedStream, CacheFolder, cache_identity, fill, locate
from sae_sweep.config import (
    ActivationsConfig,
    EmbeddedDataset,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.launch.conditions import resolve
from sae_sweep.signals import StopRequest
from sae_sweep.store import PlannedRun, RunFolder, cache_folder
from sae_sweep.store.resolved import Conditions
from sae_sweep.text import TextSource, TrainingSequences, open_text
from sae_sweep.training import GroupSettings, Member, train_group

LAYER = 6
MEMBERS = 8
CHUNK = 2**24


class NoSink:
    """A sink that discards everything."""

    def scalars(self, tokens: int, values: Any) -> None: ...
    def histogram(self, name: str, counts: Any, edges: Any) -> None: ...
    def summary(self, values: Any) -> None: ...
    def image(self, name: str, path: Path) -> None: ...
    def artifact(self, name: str, folder: Path) -> None: ...
    def mark(self) -> int:
        return 0

    def rewind(self, mark: int) -> None: ...
    def finish(self, *, failed: bool) -> None: ...


@contextmanager
def counted(lm: LanguageModel) -> Iterator[dict[str, float]]:
    """Total seconds, and the seconds and tokens of the language model among them."""
    result: dict[str, float] = {}
    began, lm_seconds, lm_tokens = time.perf_counter(), lm.seconds, lm.tokens_read
    yield result
    result["seconds"] = time.perf_counter() - began
    result["lm_seconds"] = lm.seconds - lm_seconds
    result["lm_tokens"] = lm.tokens_read - lm_tokens


def config_of(seed: int, tokens: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(path="bundled:gpt2-pico"),
        dataset=EmbeddedDataset(name="stdlib_docs"),
        architecture=TopKConfig(k=16),
        dictionary=4,
        layer=LAYER,
        seed=seed,
        tokens=tokens,
        batch=1024,
        packing=PackingConfig(),
        optimizer=OptimizerConfig(lr=1e-3),
        activations=ActivationsConfig(buffer_tokens=32_768),
    )


class Setup:
    """The language model and the text, with activation streams over them."""

    def __init__(self, tokens: int) -> None:
        self.config = config_of(0, tokens)
        self.device = pick_device("auto")
        self.lm = load_language_model(self.config.model, self.device)
        self.source: TextSource = open_text(self.config.dataset, cache_folder(None))

    def stream(self, layers: Sequence[int]) -> ActivationStream:
        sequences = TrainingSequences(
            self.source, self.config.packing, self.lm.tokenizer, self.config.data_seed
        )
        return ActivationStream(self.lm, sequences, self.config, layers)


def train(setup: Setup, seeds: Sequence[int], tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Conditions(resolve(setup.lm, setup.config, cache_folder(None)).resolved)
        members = [Member(_planned(Path(folder), seed, tokens), NoSink(), here) for seed in seeds]
        settings = GroupSettings(log_every=50, checkpoint_every_min=1e6)
        keys = {"d_in": setup.lm.d_model, "settings": settings, "stop": StopRequest()}
        outcomes = train_group(members, setup.stream, **keys)
        assert all(outcome.failed is None for outcome in outcomes), outcomes


def _planned(folder: Path, seed: int, tokens: int) -> PlannedRun:
    name = str(seed)
    return PlannedRun(name, name, "bench", config_of(seed, tokens), RunFolder(folder / name), {})


def fused_against_solo(tokens: int, repeats: int) -> dict[str, Any]:
    setup = Setup(tokens)
    train(setup, [0], setup.config.batch * 4)  # warm
    fused, solo = [], []
    for _ in range(repeats):
        with counted(setup.lm) as one:
            train(setup, range(MEMBERS), tokens)
        fused.append(one)
        with counted(setup.lm) as each:
            for seed in range(MEMBERS):
                train(setup, [seed], tokens)
        solo.append(each)
    return {
        "what": f"{MEMBERS} SAEs, fused against solo",
        "tokens_each": tokens,
        "seconds_fused": _median(fused, "seconds"),
        "seconds_solo": _median(solo, "seconds"),
        "ratio_total": _median(solo, "seconds") / _median(fused, "seconds"),
        "ratio_lm_seconds": _median(solo, "lm_seconds") / _median(fused, "lm_seconds"),
        "ratio_lm_tokens": _median(solo, "lm_tokens") / _median(fused, "lm_tokens"),
    }


def _median(runs: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def cache_against_bare_read(tokens: int, repeats: int) -> dict[str, Any]:
    setup = Setup(tokens)
    here = resolve(setup.lm, setup.config, cache_folder(None)).resolved
    identity = cache_identity(setup.config, {}, here)
    with tempfile.TemporaryDirectory() as root:
        folder = locate(Path(root), identity)
        layers = dict.fromkeys(range(3, 11), setup.config.steps)
        fill(folder, identity, layers, setup.stream, d_in=setup.lm.d_model, batch=setup.config.batch)
        files = sorted(folder.root.glob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        sides = (lambda: _read_bare(files), lambda: _read_cached(folder, list(layers), setup))
        _in_turn(sides, 1)
        warm = _in_turn(sides, repeats)
        cold = _in_turn(sides, repeats, lambda: _drop(files))
    return {
        "what": "cache, against a bare sequential read of its bytes",
        "bytes": size,
        "seconds_bare": warm[0],
        "seconds_cached": warm[1],
        "ratio": warm[0] / warm[1],
        "seconds_bare_cold": cold[0],
        "seconds_cached_cold": cold[1],
        "ratio_cold": cold[0] / cold[1],
    }


def _in_turn(
    sides: Sequence[Callable[[], None]], repeats: int, before: Callable[[], None] = lambda: None
) -> list[float]:
    """Median seconds of each side."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, found in zip(sides, seconds, strict=True):
            before()
            found.append(_seconds(side))
    return [statistics.median(found) for found in seconds]


def _drop(files: Sequence[Path]) -> None:
    """Evicts the files from the page cache, so that they are read from the disk (Linux)."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _read_bare(files: Sequence[Path]) -> None:
    memory = memoryview(bytearray(CHUNK))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def _read_cached(folder: CacheFolder, layers: Sequence[int], setup: Setup) -> None:
    stream = CachedStream(folder, layers, setup.device)
    steps = sum(1 for _, _ in zip(range(setup.config.steps), stream, strict=False))
    assert steps == setup.config.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131_072, help="budget of each SAE")
    parser.add_argument(
        "--cached-tokens", type=int, default=1_048_576, help="tokens in the cache, 8 layers each"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the records there")
    keys = parser.parse_args()
    logging.disable(logging.WARNING)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    records = [
        {**record, "device": str(pick_device("auto")), "machine": machine, "repeats": keys.repeats}
        for record in (
            fused_against_solo(keys.tokens, keys.repeats),
            cache_against_bare_read(keys.cached_tokens, keys.repeats),
        )
    ]
    for record in records:
        print(record["what"])
        for key, value in record.items():
            if key != "what":
                print(f"  {key:18} {value:.3f}" if isinstance(value, float) else f"  {key:18} {value}")
    if keys.json:
        keys.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
