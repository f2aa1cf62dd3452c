"""The comparison of a sweep's finished SAEs, at the end of a training or by `task=match sweep=NAME`."""

import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_sweep.activations import pick_device
from sae_sweep.analysis import COSINE_EDGES, Comparison, ComparisonEntry, PairRow, compare
from sae_sweep.config import Config, config_from_dict, flatten
from sae_sweep.report import ComparisonFiles, RunLine, read_densities, terminal_summary, write_comparison
from sae_sweep.saes import load_sae
from sae_sweep.store import (
    RunFolder,
    SweepFolder,
    find_sweep,
    hold_sweep,
    read_json,
    read_plan,
    read_status,
)
from sae_sweep.store.status import state
from sae_sweep.tracking import open_comparison_sink

log = logging.getLogger(__name__)


def rematch(config: Config) -> int:
    """`task=match`: compare the finished runs of `sweep` again, with this command's `matching` keys.

    Raises:
        SaeSweepError: if there is no such sweep.
    """
    folder = find_sweep(config.paths.output, config.sweep or config.experiment, config.task)
    compare_finished(folder, config)
    return 0


def compare_finished(folder: SweepFolder, config: Config) -> None:
    """Match every pair, write `analysis/matching/`, log it, and end with a table on standard output."""
    names = [run["name"] for run in read_plan(folder)["runs"]]
    lines = [_line(name, folder.run(name)) for name in names]
    done = [name for name in names if state(folder.run(name)) == "done"]
    comparison = None
    if len(done) > 1:
        configs = [_config(folder.run(name)) for name in done]
        keys = swept_keys(configs)
        entries = [_entry(name, folder.run(name), key) for name, key in zip(done, keys, strict=True)]
        comparison = compare(entries, config.matching, device=pick_device(config.device))
        with hold_sweep(folder):
            files = write_comparison(folder.matching, comparison)
        _track(folder, config, comparison, files)
    sys.stdout.write(terminal_summary(lines, comparison) + "\n")


def swept_keys(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """For each run its keys that are not the same in all runs that have them, as a person would name them."""
    flat = [_axes(config) for config in configs]
    varying = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({str(one[key]) for one in flat if key in one}) > 1
    ]
    return [{key: one[key] for key in varying if key in one} for one in flat]


def _axes(config: Config) -> dict[str, Any]:
    named = {
        "model": config.model.label,
        "layer": config.layer,
        "dataset": config.dataset.name,
        "architecture": config.architecture.kind,
        **{key: getattr(config.architecture, key) for key in config.architecture.uses},
        "dictionary": config.dictionary,
        "seed": config.seed,
    }
    spoken_for = ("model.", "dataset.", "architecture.")
    rest = {
        key: value
        for key, value in flatten(config.identity()).items()
        if key not in named and not key.startswith(spoken_for)
    }
    return {**named, **rest}


def _config(folder: RunFolder) -> Config:
    plain: Any = OmegaConf.to_container(OmegaConf.load(folder.config))
    return config_from_dict(plain)


def _entry(name: str, folder: RunFolder, keys: Mapping[str, Any]) -> ComparisonEntry:
    return ComparisonEntry(
        name=name,
        keys=keys,
        decoder=load_sae(folder.sae).W_dec.detach(),
        init_match=read_json(folder.metrics)["init_match"],
        densities=read_densities(folder.features),
    )


def _line(name: str, folder: RunFolder) -> RunLine:
    metrics = read_json(folder.metrics) if folder.metrics.exists() else {}
    known = {key: value for key, value in metrics.items() if value is not None}
    return RunLine(
        name=name,
        status=state(folder),
        tokens=read_status(folder).get("tokens"),
        metrics=known,
        init_match=known.get("init_match"),
    )


def _track(folder: SweepFolder, config: Config, comparison: Comparison, files: ComparisonFiles) -> None:
    """Send the comparison to W&B: the pairs as a table, the figures, the similarities as a histogram."""
    columns = [field.name for field in dataclasses.fields(PairRow)]
    rows = [[_cell(getattr(row, column)) for column in columns] for row in comparison.rows]
    sink = open_comparison_sink(
        folder.root.name, config, folder.root, provenance={"runs": list(comparison.names)}
    )
    sink.table("pairs", columns, rows)
    sink.image("matrix", files.matrix_figure)
    sink.image("cosines", files.cosine_figure)
    sink.histogram("top1_cosine", comparison.histogram, list(COSINE_EDGES))
    sink.summary({f"matched_{summary.key}": summary.ratio for summary in comparison.summaries})
    sink.finish()


def _cell(value: Any) -> Any:
    return " + ".join(value) if isinstance(value, tuple) else value
