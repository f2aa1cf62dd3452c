"""`task=cache`: fill, list, verify, prune or remove cached activations without training."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sae_sweep.activations.cache import CacheEntry, Removed, inventory, prune, remove, verify
from sae_sweep.config import CommandConfig, SaeSweepError, escaped
from sae_sweep.launch.conditions import cpu_threads, resolve
from sae_sweep.launch.content import refuse_other_content
from sae_sweep.launch.group import Models
from sae_sweep.launch.local import worker_threads
from sae_sweep.launch.streams import fill_cache
from sae_sweep.logs import show
from sae_sweep.plan import Plan, Request, make_plan
from sae_sweep.report.formatting import TextTable
from sae_sweep.store import PlannedRun, cache_folder
from sae_sweep.tasks.generate import sample_missing
from sae_sweep.text import open_text

log = logging.getLogger(__name__)

_GIB = 2**30
_HEADS = ("stream", "model", "dataset", "layers", "tokens", "GiB", "dtype", "state", "last used")
_LEFT = (0, 1, 2, 3, 6, 7, 8)


def cache(request: Request) -> int:
    """Run the command's `action`; returns the number of problems."""
    if request.command.action == "fill":
        return _fill(request)
    return _ACTIONS[request.command.action](request.command)


def _fill(request: Request) -> int:
    """Cache what the runs will read, one activation stream at a time."""
    folder = cache_folder(request.command.paths.cache)
    sample_missing(request)
    plan = make_plan(request)
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        groups.setdefault(run.group, []).append(run)
    models = Models()
    for runs in groups.values():
        config = runs[0].config
        source = open_text(config.dataset, folder)
        refuse_other_content(runs[0], folder)
        lm = models.get(config)
        lm.check([run.config.layer for run in runs], config.packing.seq_len)
        with cpu_threads(_threads(plan)):
            resolved = resolve(lm, config, folder).resolved
            filled = fill_cache(lm, source, runs, folder, resolved)
        log.info("%s holds what %d runs read", filled.root, len(runs))
    return 0


def _threads(plan: Plan) -> int:
    """CPU threads that the launcher trains with: the cached bits depend on them."""
    launcher = plan.command.launcher
    if launcher.kind == "local":
        return worker_threads(plan)
    return launcher.threads or torch.get_num_threads()


def _found(command: CommandConfig) -> list[CacheEntry]:
    return inventory(cache_folder(command.paths.cache), command.stream)


def _list(command: CommandConfig) -> int:
    """Print a table of all cached streams."""
    table = TextTable(_HEADS, left=_LEFT)
    streams = _found(command)
    for found in streams:
        table.add(_row(found))
    _print(*(table.lines(table.width) if streams else [f"nothing is cached in {_where(command)}"]))
    return 0


def _row(found: CacheEntry) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.used))
    gib = f"{found.bytes / _GIB:.2f}"
    manifest = found.manifest
    if manifest is None:
        return [found.folder.name, *("?" * 4), gib, "?", found.state, used]
    model, dataset = (manifest.names.get(key, "?") for key in ("model", "dataset"))
    layers = ",".join(map(str, sorted(manifest.wanted)))
    tokens = f"{manifest.steps * manifest.batch:,}"
    return [found.folder.name, model, dataset, layers, tokens, gib, manifest.dtype, found.state, used]


def _verify(command: CommandConfig) -> int:
    """Print damaged files and unusable streams; returns their number."""
    problems = []
    for found in _found(command):
        problems += [found.problem] if found.problem else [str(error) for error in verify(found)]
    _print(*problems or [f"every file in {_where(command)} is what was written"])
    return len(problems)


def _prune(command: CommandConfig) -> int:
    """Remove damaged, unfinished and unusable files, and print the space freed; returns failures."""
    problems = 0
    for found in _found(command):
        try:
            removed = prune(found)
        except SaeSweepError as error:
            problems += 1
            _print(f"{found.folder.name}: {error}")
        else:
            _print(f"{found.folder.name}: {_freed(removed) if removed else f'{found.state}, left alone'}")
    return problems


def _remove(command: CommandConfig) -> int:
    """Remove the stream that the command names."""
    for found in _found(command):
        _print(f"{found.folder.name}: {_freed(remove(found))}")
    return 0


def _freed(removed: Removed) -> str:
    kept = f"; kept, for it is not ours: {', '.join(removed.kept)}" if removed.kept else ""
    return f"freed {removed.bytes / _GIB:.2f} GiB{kept}"


def _where(command: CommandConfig) -> Path:
    return cache_folder(command.paths.cache)


def _print(*lines: str) -> None:
    show("".join(f"{escaped(line)}\n" for line in lines))


_ACTIONS: dict[str, Callable[[CommandConfig], int]] = {
    "list": _list,
    "verify": _verify,
    "prune": _prune,
    "remove": _remove,
}
