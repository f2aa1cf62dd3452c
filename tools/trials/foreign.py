"""Trials with files of strangers in the folders of runs and caches: they stay as they are."""

import hashlib
import os
from pathlib import Path
from random import Random

from trials.commands import command
from trials.follows import FOLLOWS, undisturbed
from trials.stops import equal
from trials.sweeps import VARIANTS, fresh
from trials.verdict import Verdict, crash, last_line

_NAMES = (
    *(
        ".config.yaml.original",
        ".backup.00000001",
        "notes.txt",
        "my results/a.csv",
        ".git/config",
        ".env.abcdefgh",
    ),
    *(".status.json.abcdefgh.json", ".history.jsonl.12345678", "config.yaml.bak", ".sae.backup01/cfg.json"),
    *(
        ".lock.mine",
        "checkpoint.old/state.safetensors",
        "manifest.json",
        ".DS_Store",
        ".statistics.12345678.parquet",
    ),
)
_FOLDERS = (
    *(
        "multirun/s/*_topk_*",
        "multirun/s/*_topk_*/sae",
        "multirun/s/*_topk_*/features",
        "multirun/s",
        "multirun",
    ),
    *(
        "multirun/s/analysis",
        "multirun/s/analysis/matching",
        "cache",
        "cache/activations",
        "cache/activations/*",
    ),
    *(
        "cache/activations/strangers",
        "cache/kernels",
        "cache/corpora",
        "text",
        "multirun/s/*_topk_*/checkpoint",
    ),
)
_CACHE = ("task=cache", "paths.cache=cache", "tracking=none")


def trial(random: Random, world: Path, place: Path) -> Verdict:
    """Put strangers' files somewhere, type a command, and look at them again."""
    variant, state = random.choice(tuple(VARIANTS)), random.choice(("done", "cut"))
    folder = fresh(world / variant / state, place)
    strangers = {}
    for _ in range(random.randint(1, 4)):
        where = random.choice([f for f in _FOLDERS if f != "text"])  # a file there is text of the run
        for parent in sorted(folder.glob(where)) or [folder / where] * ("*" not in where):
            file = parent / random.choice(_NAMES)
            if not file.exists() and not (where == "cache/activations/*" and file.name == "manifest.json"):
                strangers[file] = _put(file, random)
    if random.random() < 0.3:
        _link_outside(folder, strangers, random)
    name = random.choice(
        ("relaunch", "cached", "prune", "prune", "verify", "remove", "remove nothing", "list")
    )
    what = f"{variant} {state}, {[str(file.relative_to(place.parent)) for file in strangers]}, {name}"
    verdict = _typed(name, variant, state, folder, world, tuple(strangers))
    lost = [str(file.relative_to(place.parent)) for file, sum_ in strangers.items() if _sum(file) != sum_]
    if lost and verdict.outcome != "traceback":
        verdict = Verdict("silently wrong", f"touched: {lost}")
    return verdict._replace(detail=f"{what}: {verdict.detail}")


def _typed(
    name: str, variant: str, state: str, folder: Path, world: Path, known: tuple[Path, ...]
) -> Verdict:
    if name in FOLLOWS and name != "verify":
        expected = undisturbed(world, variant, state, name)
        return equal(FOLLOWS[name].run(variant, folder), folder, expected, known=known)
    stream = next(path.name for path in sorted((world / variant / state / "cache/activations").iterdir()))
    more = {"remove": ("action=remove", f"stream={stream}"), "remove nothing": ("action=remove", "stream=''")}
    ended = command([*_CACHE, *more.get(name, (f"action={name}",))], folder)
    wrong = crash(ended, folder, known)
    there = (folder / "cache" / "activations" / stream / "manifest.json").exists()
    if wrong is not None:
        return wrong
    if there == (name == "remove"):
        return Verdict("silently wrong", f"{name}: the stream is {'still' if there else 'not'} there")
    fitting = ended.code in ((1, 2) if name == "remove nothing" else (0, 1))
    return Verdict("right" if fitting else "unclear", f"exit code {ended.code}: {last_line(ended.err)}")


def _put(file: Path, random: Random) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(random.randbytes(random.choice((0, 10, 5_000))))
    os.utime(file, (1_000_000_000, 1_000_000_000))
    return _sum(file)


def _link_outside(folder: Path, strangers: dict[Path, str], random: Random) -> None:
    """A link in the cache to a folder elsewhere, which has files of its own."""
    outside = folder.parent / "outside"
    link = folder / "cache" / "activations" / "elsewhere"
    link.parent.mkdir(parents=True, exist_ok=True)
    strangers[outside / "precious.txt"] = _put(outside / "precious.txt", random)
    link.symlink_to(outside)


def _sum(file: Path) -> str:
    if not file.is_file():
        return "gone"
    return f"{file.stat().st_mtime} {hashlib.sha256(file.read_bytes()).hexdigest()}"
