"""Trials that give a key of the command line an absurd value."""

import dataclasses
import json
import math
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from trials.commands import Ended, command
from trials.sweeps import fresh, words
from trials.verdict import Verdict, crash, last_line, stray_line

_DEEP = "[" * 3_000 + "]" * 3_000
_NEVER = (
    *("nan", "-inf", "-1", "-1e23", "abc", "[1,2]", "{a: 1}", "''", "'1 2'", "[[1]]", "true", _DEEP),
    "'\x1b[31m'",
)
"""Never a value of a key that is a number: none may be negative."""
_LARGE = ("inf", "1e23", "18446744073709551616", "1e400", "9" * 5_000, "9223372036854775807")
"""To be refused, unless they have a meaning: `clip_norm=inf`."""
_TEXTS = (
    *("..", ".", "../x", "a/b", "/x", "~", "''", "' '", "null", "nan", "-x", "'*'", "'['", "'$HOME'", "é"),
    *("'\x1b[31mred'", "'a\tb'", "'a\nb'", "'\u202eabc'", "x" * 300, "x" * 5_000, "'# x'", "'<b>'", "'|'"),
    *("${sweep}", "${oc.env:HOME}", "${nowhere}", "[a,b]", "{a: b}", "'a=b'", "'{'", "CON"),
)
_TEXT_KEYS = (
    *("sweep", "dataset.name", "model.name", "tracking.project", "tracking.entity", "dataset.path"),
    *("model.path", "paths.output", "paths.cache", "device", "backend", "numerics", "site", "init.b_dec"),
    *("model.dtype", "activations.dtype", "dataset.exhausted", "task", "launcher", "stream", "architecture"),
    *("model", "dataset", "activations", "format", "fuse", "experiment", "init.shared", "no.such.key"),
)
_LEAST_EXPLAINED = -2.0
"""The undisturbed runs are at about -0.7 after their 6 steps."""


def number(random: Random, world: Path, place: Path) -> Verdict:
    """Give a number's key something that is no such number, or too large a one."""
    kind, key = random.choice(list(_number_keys()))
    value = random.choice((*_NEVER, *_LARGE))
    folder = _new(world, place)
    ended = command([*_without(key, "architecture"), f"architecture={kind}", f"{key}={value}"], folder)
    return _judge(ended, folder, key, value, absurd=value in _NEVER)


def text(random: Random, world: Path, place: Path) -> Verdict:
    """Give a key a hostile text."""
    key, value = random.choice(_TEXT_KEYS), random.choice(_TEXTS)
    folder = _new(world, place)
    ended = command([*_without(key), f"{key}={value}"], folder)
    what = f"{key}={_short(value)}"
    shown = [c for c in ended.out + ended.err if not (c.isprintable() or c in "\n\t")]
    if shown and ended.code is not None:
        return Verdict("unclear", f"{what}: the control character {shown[0]!r} is shown")
    outside = {path.name for path in (*place.parent.iterdir(), *folder.iterdir())}
    outside -= {"copy", "copy.out", "copy.err", "multirun", "cache", "text", "model"}
    if outside and not key.startswith("paths."):
        return Verdict("litter", f"{what}: {outside}")
    return _judge(ended, folder, key, value)


def _judge(ended: Ended, folder: Path, key: str, value: str, *, absurd: bool = False) -> Verdict:
    """Refused in lines that name the key, before anything was written; or a run as good as others."""
    what, wrong = f"{key}={_short(value)}", crash(ended, folder)
    if wrong is not None:
        return wrong._replace(detail=f"{what}: {wrong.detail}")
    if ended.code == 0:
        if absurd:
            return Verdict("silently wrong", f"{what} was accepted")
        odd = [path.parent.name for path in folder.glob("multirun/*/*/metrics.json") if not _is_sound(path)]
        return Verdict("silently wrong" if odd else "right", f"{what}: {odd}")
    names = (key.rpartition(".")[2], value.strip("'")[:20].strip("${}") or key)
    said = [line for line in ended.err.splitlines() if any(name in line for name in names)]
    stray = stray_line(ended.err)
    if stray or not said:
        return Verdict("unclear", f"{what}: {stray or last_line(ended.err)}")
    if ended.code == 2 and any(folder.glob("multirun/*/*")):
        return Verdict("litter", f"{what}: refused only after files were written: {said[0][:200]}")
    return Verdict("one line", f"{what}: {said[0][:200]}")


def _is_sound(metrics: Path) -> bool:
    values = json.loads(metrics.read_text())
    numbers = [value for value in values.values() if not isinstance(value, dict | str)]
    finite = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    return finite and values["explained_variance"] > _LEAST_EXPLAINED


def _number_keys() -> Iterator[tuple[str, str]]:
    """Every key that is a number, after the architecture that it is a key of."""
    from sae_sweep.config import CommandConfig, RunConfig
    from sae_sweep.config.architecture import ARCHITECTURES
    from sae_sweep.config.data import FilesDataset

    for config in (RunConfig, CommandConfig):
        yield from (("topk,batchtopk,jumprelu", key) for key in _numbers(config, ""))
    yield from (("topk", key) for key in _numbers(FilesDataset, "dataset."))
    for kind, config in ARCHITECTURES.items():
        yield from ((kind, key) for key in _numbers(config, "architecture."))


def _numbers(config: Any, prefix: str) -> Iterator[str]:
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _numbers(kind, f"{prefix}{name}.")
        elif {int, float} & {kind, *typing.get_args(kind)}:
            yield prefix + name


def _without(*keys: str) -> list[str]:
    """The command of a sweep without some keys."""
    return [word for word in words("files") if word.partition("=")[0] not in keys]


def _new(world: Path, place: Path) -> Path:
    """A folder with text, model and caches, and no sweep."""
    folder = fresh(world / "files" / "done", place)
    shutil.rmtree(folder / "multirun")
    return folder


def _short(value: str) -> str:
    return repr(value if len(value) < 40 else f"{value[:20]}... ({len(value)} characters)")
