"""Commands that are typed after damage, and what they do to an undamaged sweep."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trials.commands import Ended, command, forked
from trials.sweeps import fresh, results, without_clocks, words
from trials.verdict import Undisturbed


class Follow(NamedTuple):
    """A command that is typed after damage."""

    run: Callable[[str, Path], Ended]
    """Called with the sweep's variant and the copy's folder."""
    shown: Callable[[str], str] = str
    """What a person reads off its standard output."""


def _relaunch(*more: str) -> Callable[[str, Path], Ended]:
    return lambda variant, folder: command(words(variant, *more), folder)


def _task(*more: str) -> Callable[[str, Path], Ended]:
    return lambda variant, folder: command([*more, "sweep=s", "tracking=none", "paths.cache=cache"], folder)


def _without_clocks(out: str) -> str:
    try:
        return repr(without_clocks(json.loads(out)))
    except ValueError:
        return out


def _load_saes() -> None:
    """Load every SAE as a notebook does, and print what came."""
    from sae_sweep.config import SaeSweepError
    from sae_sweep.saes import load_sae

    failed = False
    for run in sorted(Path("multirun/s").glob("*_L2_*")):
        try:
            sae = load_sae(run)
        except SaeSweepError as error:
            sys.stderr.write(f"sae_sweep: {error}\n")
            failed = True
            continue
        state = sorted(sae.state_dict().items())
        sums = [(name, hashlib.sha256(value.numpy().tobytes()).hexdigest()) for name, value in state]
        sys.stdout.write(f"{run.name} {sae.architecture} {sae.numerics} {sums}\n")
    sys.exit(int(failed))


def _train_frozen() -> None:
    """Train the frozen group as a worker process does."""
    from sae_sweep.config import ConfigError, SaeSweepError
    from sae_sweep.launch.job import run_job_alone

    try:
        run_job_alone(Path("multirun/s").resolve(), 0)
    except (ConfigError, SaeSweepError) as error:
        sys.stderr.write(f"sae_sweep: {error}\n")
        sys.exit(1)


FOLLOWS = {
    "relaunch": Follow(_relaunch()),
    "cached": Follow(_relaunch("activations=cache")),
    "status": Follow(_task("task=status", "format=json"), _without_clocks),
    "match": Follow(_task("task=match")),
    "report": Follow(_task("task=report")),
    "load_sae": Follow(lambda variant, folder: forked(_load_saes, folder)),
    "job": Follow(lambda variant, folder: forked(_train_frozen, folder)),
    "verify": Follow(_task("task=cache", "action=verify"), lambda out: out.partition(" in ")[0]),
}


def follow(name: str, variant: str, folder: Path) -> Ended:
    """Type a command in a copy; returns what it shows without the copy's place and clocks."""
    ended = FOLLOWS[name].run(variant, folder)
    return ended._replace(out=FOLLOWS[name].shown(ended.out.replace(str(folder), "FOLDER")))


def undisturbed(world: Path, variant: str, state: str, name: str) -> Undisturbed:
    """What a command does to an undamaged sweep; found once and kept."""
    kept = world / f"{variant}-{state}-{name}.json"
    if not kept.exists():
        place = Path(tempfile.mkdtemp(prefix="undisturbed-", dir=world))
        folder = fresh(world / variant / state, place / "copy")
        ended = follow(name, variant, folder)
        found = {"code": ended.code, "out": ended.out, "results": results(folder / "multirun")}
        aside = place / kept.name
        aside.write_text(json.dumps(found))
        aside.rename(kept)
        shutil.rmtree(place)
    return Undisturbed(**json.loads(kept.read_text()))
