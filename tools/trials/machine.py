"""Trials that launch a sweep again from elsewhere: other spellings, threads and keys, other content."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from random import Random
from typing import Any

from trials.commands import command, end, process
from trials.follows import undisturbed
from trials.stops import equal
from trials.sweeps import VARIANTS, fresh, results, words
from trials.verdict import Undisturbed, Verdict, crash, differences, last_line, stray_line


def _linked(folder: Path, name: str) -> str:
    (folder / "link").symlink_to(folder / name)
    return "link"


SPELLINGS: dict[str, Callable[[Path, str], str]] = {
    "./x": lambda folder, name: f"./{name}",
    "x/": lambda folder, name: f"{name}/",
    "x/.": lambda folder, name: f"{name}/.",
    "x//": lambda folder, name: f"{name}//",
    "y/../x": lambda folder, name: f"cache/../{name}",
    "absolute": lambda folder, name: str(folder / name),
    "link": _linked,
    "copy": lambda folder, name: shutil.copytree(folder / name, folder / f"{name}2").name,
}


def spelling(random: Random, world: Path, place: Path) -> Verdict:
    """The same text or model by another path, or from another working directory: the same sweep goes on."""
    state, key = random.choice(("done", "cut")), random.choice(("dataset.path", "model.path", "cwd"))
    folder = fresh(world / "files" / state, place)
    typed = words("files")
    if key == "cwd":
        how, where = "another working directory", folder.parent
        paths = {name: f"{folder.name}/{name}" for name in ("text", "model", "cache")}
        typed = [f"{k}={paths.get(v, v)}" for k, _, v in (word.partition("=") for word in typed)]
        ended = command([*typed, f"paths.output={folder.name}/multirun"], where)
    else:
        how = random.choice(tuple(SPELLINGS))
        before = dict(word.split("=", 1) for word in typed)[key]
        typed = [word for word in typed if not word.startswith(f"{key}=")]
        ended = command([*typed, f"{key}={SPELLINGS[how](folder, before)}"], folder)
    # Records may hold the path that was typed: of a finished run as it was trained, of others either one.
    but = "^$" if state == "done" else "config.yaml|cfg.json|plan.json"
    verdict = equal(ended, folder, undisturbed(world, "files", state, "relaunch"), but=but)
    if verdict.outcome == "right" and state == "done" and "LM: " in ended.err:
        verdict = Verdict("silently wrong", "it was trained again")
    return verdict._replace(detail=f"{state}, {key} as {how}: {verdict.detail}")


_SAME_ID = (
    *("dataset.name=other", "model.name=other", "model.path=bundled:gpt2-pico", "sweep=other"),
    *("launcher.max_group=1", "launcher=local", "fuse=false", "paths.output=other", "activations=cache"),
    *("matching.threshold=0.5", "evaluation.tokens=512", "evaluation.dense=0.5", "tracking.log_every=1"),
)
"""Words that move no weight."""


def label(random: Random, world: Path, place: Path) -> Verdict:
    """Another label, place or speed: the same ids."""
    folder = fresh(world / "files" / "done", place)
    more = random.choice(_SAME_ID)
    ids = []
    for typed in (words("files"), words("files", more)):
        last = {word.partition("=")[0]: word for word in typed}
        ended = command([*last.values(), "task=plan", "format=json", "plan.tflops=1"], folder)
        wrong = crash(ended, folder)
        if wrong is not None or ended.code != 0:
            return wrong or Verdict("unclear", f"{more}: exit code {ended.code}: {last_line(ended.err)}")
        ids.append([run["id"] for run in json.loads(ended.out)["runs"]])
    return Verdict("right" if ids[0] == ids[1] else "silently wrong", f"{more}: {ids}")


def evaluated_again(random: Random, world: Path, place: Path) -> Verdict:
    """Another evaluation key: the result of a sweep that had it from the start, with the same weights."""
    variant, state = random.choice(tuple(VARIANTS)), random.choice(("done", "cut"))
    key = random.choice(("evaluation.tokens=512", "evaluation.dense=0.2", "evaluation.ultra_rare=0.1"))
    typed = [word for word in words(variant) if not word.startswith(key.partition("=")[0])]
    expected = _from_start(world, variant, key, [*typed, key], place.with_name("start"))
    folder = fresh(world / variant / state, place)
    ended = command([*typed, key], folder)
    # the history may hold both evaluations; the config stays as it was trained
    verdict = equal(ended, folder, expected, but="history.jsonl|config.yaml")
    return verdict._replace(detail=f"{variant} {state}, {key}: {verdict.detail}")


def _from_start(world: Path, variant: str, key: str, typed: list[str], place: Path) -> Undisturbed:
    kept = world / f"{variant}-{key}.json"
    if not kept.exists():
        folder = fresh(world / variant / "done", place)
        shutil.rmtree(folder / "multirun")
        ended = command(typed, folder)
        found = {"code": ended.code, "out": ended.out, "results": results(folder / "multirun")}
        aside = place.with_name("start.json")
        aside.write_text(json.dumps(found))
        aside.rename(kept)
    return Undisturbed(**json.loads(kept.read_text()))


def refused(random: Random, world: Path, place: Path) -> Verdict:
    """Another training key, text or model: refused, naming it, and nothing is touched."""
    state = random.choice(("done", "cut"))
    folder = fresh(world / "files" / state, place)
    change = random.choice(("lr", "seed", "dictionary", "buffer", "text", "weights"))
    keys = {
        "lr": "optimizer.lr=1e-3",
        "seed": "seed=7",
        "dictionary": "dictionary=2",
        "buffer": "activations.buffer_tokens=2_048",
    }
    typed, name = words("files"), {"text": "text", "weights": "model"}.get(change, "")
    if change == "text":
        (folder / "text" / "00.txt").write_text("Another text. " * 300)
    elif change == "weights":
        _change_weight(folder / "model" / "model.safetensors")
    else:
        name = keys[change].partition("=")[0]
        typed = [*(word for word in typed if not word.startswith(f"{name}=")), keys[change]]
    before = results(folder / "multirun")
    ended = command(typed, folder)
    wrong = crash(ended, folder)
    if wrong is not None:
        return wrong._replace(detail=f"{state}, other {change}: {wrong.detail}")
    touched = differences(results(folder / "multirun"), before)
    named = name.rpartition(".")[2] in ended.err and not stray_line(ended.err)
    outcome = "silently wrong" if touched or ended.code == 0 else "one line" if named else "unclear"
    return Verdict(outcome, f"{state}, other {change}: {touched or last_line(ended.err)}")


def _change_weight(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-1_001] ^= 0x04
    file.unlink()
    file.write_bytes(whole)


def threads(random: Random, world: Path, place: Path) -> Verdict:
    """Go on with another number of threads: runs that had begun keep theirs, and have the weights of it."""
    first, second = random.sample(("1", "2"), 2)
    launchers = random.choice(("inprocess", "local")), random.choice(("inprocess", "local"))
    expected = {number: _with_threads(world, number, place) for number in (first, second)}
    folder = fresh(world / "files" / "done", place)
    shutil.rmtree(folder / "multirun")
    group = (f"launcher.max_group={random.choice((1, 3))}", "launcher.workers=1")
    started = process(words("files", f"launcher={launchers[0]}", *group), folder, OMP_NUM_THREADS=first)
    while started.poll() is None and not list(folder.glob("multirun/s/*/checkpoint/before.safetensors")):
        time.sleep(0.005)
    started.send_signal(signal.SIGTERM)
    stopped = end(started, folder)
    begun = {path.parts[-3] for path in folder.glob("multirun/s/*/*/state.safetensors")}
    typed = words("files", f"launcher={launchers[1]}", *group)
    ended = end(process(typed, folder, OMP_NUM_THREADS=second), folder)
    verdict = crash(ended, folder) or _by_threads(results(folder / "multirun"), begun, first, expected)
    what = f"{first} then {second} threads, {launchers[0]} then {launchers[1]}, {group[0]}, {stopped.code}"
    return verdict._replace(detail=f"{what}: {verdict.detail}")


def _by_threads(
    found: Mapping[str, Any], begun: Collection[str], first: str, expected: Mapping[str, Undisturbed]
) -> Verdict:
    """Compare each run with one that had its number of threads throughout."""
    wrong = []
    for name, value in found.items():
        _, run, *_ = name.split("/") if "/analysis/" not in name else ("s", "")
        if f"s/{run}/status.json" in found:
            used = found[f"s/{run}/status.json"]["resolved"]["threads"]
            if value != expected[used].results.get(name) or (run in begun and used != first):
                wrong.append(name)
    return Verdict("silently wrong", f"{wrong} differ") if wrong else Verdict("right", "")


def _with_threads(world: Path, number: str, place: Path) -> Undisturbed:
    if number == "1":
        return undisturbed(world, "files", "cut", "relaunch")
    kept = world / f"threads-{number}.json"
    if not kept.exists():
        folder = fresh(world / "files" / "done", place.with_name(f"threads-{number}"))
        shutil.rmtree(folder / "multirun")
        ended = end(process(words("files", "launcher.max_group=1"), folder, OMP_NUM_THREADS=number), folder)
        found = {"code": ended.code, "out": ended.out, "results": results(folder / "multirun")}
        kept.write_text(json.dumps(found))
    return Undisturbed(**json.loads(kept.read_text()))
