"""Trials that flip bits or forge the header of a checkpoint, then load it or resume from it."""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from trials import mutate
from trials.commands import forked
from trials.follows import follow, undisturbed
from trials.sweeps import VARIANTS, fresh
from trials.verdict import Verdict, crash, judge, last_line

_CHANGES = (
    *([mutate.flip_bit] * 12),
    mutate.overwrite,
    mutate.cut,
    mutate.insert,
    mutate.zeros,
    mutate.forge_header,
)


def load(random: Random, world: Path, place: Path) -> Verdict:
    """Damage the newest checkpoint of a run and load: what comes is it, or the one before, or none."""
    folder = fresh(world / random.choice(tuple(VARIANTS)) / "cut", place)
    newest = random.choice(sorted(folder.glob("multirun/s/*/checkpoint/state.safetensors")))
    intact = _load(newest, folder).out
    aside = newest.rename(newest.with_name("aside"))
    before = _load(newest, folder).out
    aside.rename(newest)
    did = random.choice(_CHANGES)(newest, random)
    ended = _load(newest, folder)
    wrong = crash(ended, folder)
    what = f"{newest.relative_to(folder)}: {did}"
    if wrong is not None:
        return wrong._replace(detail=f"{what}: {wrong.detail}")
    if ended.out == intact:
        return Verdict("right", what)
    if newest.name not in ended.err:
        return Verdict("unclear", f"{what}: {last_line(ended.err)}")
    return Verdict("one line" if ended.out == before else "silently wrong", f"{what}: {last_line(ended.err)}")


def resume(random: Random, world: Path, place: Path) -> Verdict:
    """Damage a checkpoint and launch again: the weights are those of an undisturbed sweep."""
    variant = random.choice(tuple(VARIANTS))
    expected = undisturbed(world, variant, "cut", "relaunch")
    folder = fresh(world / variant / "cut", place)
    path = random.choice(sorted(folder.glob("multirun/s/*/checkpoint/*.safetensors")))
    did = random.choice(_CHANGES)(path, random)
    ended = follow("relaunch", variant, folder)
    run = path.relative_to(folder).parts[2]
    verdict = judge(ended, folder, expected, names=(path.name, "/checkpoint"), run=run)
    return verdict._replace(detail=f"{variant}, {path.relative_to(folder)}, {did}: {verdict.detail}")


def _load(checkpoint: Path, folder: Path) -> Any:
    """Print what `load_checkpoint` returns, or None."""

    def call() -> None:
        from sae_sweep import logs
        from sae_sweep.store import RunFolder, read_status
        from sae_sweep.training.checkpoint import load_checkpoint

        logs.log_to_terminal()
        run = RunFolder(checkpoint.parent.parent)
        found = load_checkpoint(run, str(read_status(run).run_id))
        sys.stdout.write(repr(_plain(found)))

    return forked(call, folder)


def _plain(value: Any) -> Any:
    """Tensors as dtype, shape and checksum."""
    if hasattr(value, "numpy"):
        raw = hashlib.sha256(value.reshape(-1).contiguous().view(_bytes()).numpy().tobytes()).hexdigest()
        return (str(value.dtype), tuple(value.shape), raw)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in sorted(value.items())}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _bytes() -> Any:
    import torch

    return torch.uint8
