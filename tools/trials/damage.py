"""Trials that damage one file of a sweep, a cache or a model, then type a command."""

from pathlib import Path
from random import Random
from typing import NamedTuple

from trials.follows import follow, undisturbed
from trials.mutate import mutate
from trials.sweeps import VARIANTS, content, fresh
from trials.verdict import Verdict, judge


class Target(NamedTuple):
    """Files to damage, and what may be typed afterwards."""

    files: str
    """Glob below the sweep's copy."""
    states: tuple[str, ...]
    follows: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Words that a message may use instead of the file's name."""
    weight: int = 1
    variants: tuple[str, ...] = tuple(VARIANTS)


_RUN, _READERS = "multirun/s/*_L2_*/", ("relaunch", "status", "match", "report")
TARGETS = (
    Target(f"{_RUN}config.yaml", ("done", "cut"), _READERS, weight=3),
    Target(f"{_RUN}status.json", ("done", "cut"), _READERS, weight=3),
    Target(f"{_RUN}metrics.json", ("done",), _READERS, weight=3),
    Target(f"{_RUN}history.jsonl", ("done", "cut"), _READERS, weight=2),
    Target(f"{_RUN}train.log", ("done", "cut"), ("relaunch", "status")),
    Target(f"{_RUN}features/*", ("done",), ("relaunch", "match", "report"), weight=2),
    Target(f"{_RUN}sae/*", ("done",), ("relaunch", "match", "report", "load_sae", "load_sae"), ("/sae",), 4),
    Target(f"{_RUN}checkpoint/*", ("cut",), ("relaunch", "relaunch", "status"), ("/checkpoint",), 2),
    Target("multirun/s/plan.json", ("done", "cut"), _READERS, weight=3),
    Target("multirun/s/analysis/matching/*", ("done",), ("relaunch", "match", "report")),
    Target("multirun/s/jobs/0.json", ("cut",), ("job",), weight=2),
    Target(
        "cache/corpora/*/stdlib_docs.jsonl", ("done", "cut"), ("relaunch",), ("corpora",), 2, ("embedded",)
    ),
    Target("cache/activations/*/*", ("cut",), ("cached", "verify"), ("cache/activations",), 3),
    Target("cache/kernels/*", ("cut",), ("relaunch",), ("kernels",)),
    Target("model/*", ("done", "cut"), ("relaunch",), ("model",), 2, ("files",)),
)


def trial(random: Random, world: Path, place: Path) -> Verdict:
    """Damage a file, type a command, and judge what came."""
    target = random.choices(TARGETS, [target.weight for target in TARGETS])[0]
    variant, state, name = (random.choice(of) for of in (target.variants, target.states, target.follows))
    expected = undisturbed(world, variant, state, name)
    folder = fresh(world / variant / state, place)
    files = [path for path in sorted(folder.glob(target.files)) if path.is_file()]
    if not files:
        raise LookupError(f"{variant}, {state}: no file {target.files}")
    path = random.choice(files)
    did = mutate(path, random)
    damaged = content(path)
    ended = follow(name, variant, folder)
    inside = path.is_relative_to(folder / "multirun")
    verdict = judge(
        ended,
        folder,
        expected,
        names=(path.name, *target.names),
        run=path.relative_to(folder).parts[2] if target.files.startswith(_RUN) else None,
        untouched=str(path.relative_to(folder / "multirun")) if inside and content(path) == damaged else "",
    )
    what = f"{variant} {state}, {path.relative_to(folder)}, {did}; {name}"
    return verdict._replace(detail=f"{what}: {verdict.detail}")
