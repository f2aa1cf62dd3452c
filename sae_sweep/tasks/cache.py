"""`task=cache`: fill the activation cache without training, and look after what is in it."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sae_sweep.activations.cache import Found, inventory, prune, remove, verify
from sae_sweep.activations.cache.inventory import names
from sae_sweep.config import Config
from sae_sweep.launch.inprocess import Models
from sae_sweep.launch.streams import fill_cache
from sae_sweep.plan.plan import Plan, PlannedRun
from sae_sweep.report.formatting import TextTable
from sae_sweep.store import cache_folder
from sae_sweep.text import open_text

log = logging.getLogger(__name__)

_GIB = 2**30
_HEADS = ("stream", "model", "dataset", "layers", "tokens", "GiB", "dtype", "state", "last used")
_LEFT = (0, 1, 2, 3, 6, 7, 8)


def look_after(config: Config) -> int:
    """Do any `action` but `fill`; returns how many problems it found."""
    return _ACTIONS[config.action](config)


def fill_planned(plan: Plan) -> int:
    """Cache what the runs of the plan will read, those of one stream together."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        groups.setdefault(run.group, []).append(run)
    models = Models()
    for runs in groups.values():
        config = runs[0].config
        lm = models.get(config)
        lm.check([run.config.layer for run in runs], config.packing.seq_len)
        folder = fill_cache(lm, open_text(config.dataset, cache_folder(config.paths.cache)), runs)
        log.info("%s holds what %d runs read", folder.root, len(runs))
    return 0


def _found(config: Config) -> list[Found]:
    return inventory(cache_folder(config.paths.cache), config.stream)


def _list(config: Config) -> int:
    """Print a table of all streams."""
    table = TextTable(_HEADS, left=_LEFT)
    streams = _found(config)
    for found in streams:
        table.add(_row(found))
    _print(*(table.lines(table.width) if streams else [f"nothing is cached in {_where(config)}"]))
    return 0


def _row(found: Found) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.used))
    gib = f"{found.bytes / _GIB:.2f}"
    manifest = found.manifest
    if manifest is None:
        return [found.folder.name, *("?" * 4), gib, "?", found.state, used]
    model, dataset = names(manifest.stream)
    layers = ",".join(map(str, sorted(manifest.wanted)))
    tokens = f"{manifest.steps * manifest.batch:,}"
    return [found.folder.name, model, dataset, layers, tokens, gib, manifest.dtype, found.state, used]


def _verify(config: Config) -> int:
    """Print every damaged file; returns how many there are, unusable streams included."""
    problems = []
    for found in _found(config):
        problems += [found.problem] if found.problem else [str(error) for error in verify(found)]
    _print(*problems or [f"every file in {_where(config)} is what was written"])
    return len(problems)


def _prune(config: Config) -> int:
    """Remove what is damaged, unfinished or unusable, and print what that freed."""
    for found in _found(config):
        freed = prune(found)
        if freed is None:
            _print(f"{found.folder.name}: {found.state}, left alone")
        else:
            _print(f"{found.folder.name}: freed {freed / _GIB:.2f} GiB")
    return 0


def _remove(config: Config) -> int:
    """Remove the one stream that was named."""
    for found in _found(config):
        _print(f"{found.folder.name}: freed {remove(found) / _GIB:.2f} GiB")
    return 0


def _where(config: Config) -> Path:
    return cache_folder(config.paths.cache)


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


_ACTIONS: dict[str, Callable[[Config], int]] = {
    "list": _list,
    "verify": _verify,
    "prune": _prune,
    "remove": _remove,
}
