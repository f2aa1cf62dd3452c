"""Damage, stop, fill up and move small real sweeps, and count what came of it.

    python tools/break_it.py --trials 3000
    python tools/break_it.py --only files --seed 17      # one trial again

Every trial works in a fresh copy of a finished sweep, or of one that was cut, on the bundled model. It
ends well if the result equals the undisturbed sweep's (right), or if a line names the file or key and nothing
else is concerned (one line). Anything else is listed with the command that repeats it, and the exit is 1.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: children are forked, so nothing here may start threads
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from trials import checkpoints, commands, damage, disk, foreign, machine, stops, sweeps, values
from trials.verdict import BAD, OUTCOMES, Verdict


class Kind(NamedTuple):
    """A kind of trial."""

    share: float
    """Its part of all trials."""
    trial: Callable[[Random, Path, Path], Verdict]
    """Called with random numbers, the folder of the undisturbed sweeps, and a place for a copy."""


KINDS = {
    "files": Kind(0.36, damage.trial),
    "checkpoint-load": Kind(0.22, checkpoints.load),
    "checkpoint-resume": Kind(0.05, checkpoints.resume),
    "stop": Kind(0.06, stops.at_moment),
    "stop-process": Kind(0.01, stops.in_process),
    "disk": Kind(0.06, disk.trial),
    "threads": Kind(0.004, machine.threads),
    "spelling": Kind(0.02, machine.spelling),
    "label": Kind(0.01, machine.label),
    "evaluated-again": Kind(0.015, machine.evaluated_again),
    "refused": Kind(0.02, machine.refused),
    "number": Kind(0.11, values.number),
    "text": Kind(0.06, values.text),
    "foreign": Kind(0.05, foreign.trial),
}


class Trial(NamedTuple):
    kind: str
    seed: int


class Done(NamedTuple):
    kind: str
    seed: int
    outcome: str
    detail: str
    seconds: float


def planned(trials: int, seed: int, only: Sequence[str]) -> list[Trial]:
    """The trials of a command: every kind its share, at least one, in an order that mixes them."""
    kinds = {name: kind.share for name, kind in KINDS.items() if not only or name in only}
    whole = sum(kinds.values())
    found = [
        Trial(name, seed + number)
        for name, share in kinds.items()
        for number in range(max(1, round(trials * share / whole)))
    ]
    Random(seed).shuffle(found)
    return found


def carry_out(trial: Trial, world: Path) -> Done:
    """Carry out one trial in a folder that is removed afterwards."""
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix=f"{trial.kind}-{trial.seed}-", dir=world))
    random = Random(f"{trial.kind} {trial.seed}")
    try:
        verdict = KINDS[trial.kind].trial(random, world, place / "copy")
    except Exception as error:  # a fault of the trial must not end the others
        verdict = Verdict("no verdict", f"the trial failed: {error!r} at {_where(error)}")
    shutil.rmtree(place, ignore_errors=True)
    return Done(*trial, *verdict, round(time.monotonic() - began, 2))


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def carry_all_out(trials: Sequence[Trial], world: Path, workers: int) -> Iterator[Done]:
    """Carry trials out in some processes; yields each as it ends."""
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        for ended in as_completed([pool.submit(carry_out, trial, world) for trial in trials]):
            yield ended.result()


def table(done: Sequence[Done]) -> str:
    """Counts per kind."""
    counts = Counter((one.kind, one.outcome) for one in done)
    lines = [f"{'kind':20}" + "".join(f"{outcome:>16}" for outcome in OUTCOMES) + f"{'all':>8}"]
    for kind in [*KINDS, None]:
        row = [sum(n for (of, as_), n in counts.items() if kind in (of, None) and as_ == o) for o in OUTCOMES]
        if sum(row):
            cells = "".join(f"{count or '.':>16}" for count in row)
            lines.append(f"{kind or 'all':20}{cells}{sum(row):>8}")
    return "\n".join(lines)


def repeat(one: Done) -> str:
    return f"python tools/break_it.py --only {one.kind} --seed {one.seed}"


def parsed(words: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, help="how many; 1 with --only, else 300")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first trial of each kind")
    parser.add_argument(
        "--only", action="append", default=[], choices=tuple(KINDS), help="a kind; repeatable"
    )
    parser.add_argument("--workers", type=int, default=2, help="trials at once")
    parser.add_argument("--folder", type=Path, help="keeps the undisturbed sweeps for the next command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes counts and bad trials")
    parser.add_argument("--optimise", action="store_true", help="under python -O, which drops assertions")
    return parser.parse_args(words)


def main() -> None:
    keys = parsed()
    if keys.optimise and not sys.flags.optimize:
        os.execv(sys.executable, [sys.executable, "-O", *sys.argv])
    trials = planned(keys.trials or (1 if keys.only else 300), keys.seed, keys.only)
    folder = keys.folder or Path(tempfile.mkdtemp(prefix="break-it-"))
    began = time.monotonic()
    try:
        done = run(trials, folder.resolve(), keys.workers)
    finally:
        if keys.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    bad = [one for one in done if one.outcome in BAD]
    print(f"{table(done)}\n{len(done)} trials in {time.monotonic() - began:.0f} s, {len(bad)} of them bad")
    if keys.json is not None:
        keys.json.write_text(json.dumps({"trials": [one._asdict() for one in done]}, indent=1) + "\n")
    sys.exit(int(bool(bad)))


def run(trials: Sequence[Trial], folder: Path, workers: int) -> list[Done]:
    """Make the undisturbed sweeps, then carry the trials out; bad ones are printed as they are found."""
    folder.mkdir(parents=True, exist_ok=True)
    commands.import_everything()
    sweeps.prepare(folder)
    sweeps.build(folder)
    done = []
    for one in carry_all_out(trials, folder, workers):
        done.append(one)
        if one.outcome in BAD:
            print(f"{one.outcome}: {one.detail}\n    {repeat(one)}", flush=True)
        if len(done) % 100 == 0:
            print(f"{len(done)} of {len(trials)}", file=sys.stderr, flush=True)
    return sorted(done)


if __name__ == "__main__":
    main()
