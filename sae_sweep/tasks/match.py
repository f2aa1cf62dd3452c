"""Compares the finished SAEs of a sweep, after training or with `task=match sweep=NAME`."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from sae_sweep.activations import pick_device
from sae_sweep.analysis import COSINE_EDGES, Comparison, ComparisonEntry, PairRow, compare
from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import (
    CommandConfig,
    ConfigError,
    RunConfig,
    SaeSweepError,
    first_line,
    flatten,
    run_from_dict,
)
from sae_sweep.logs import show
from sae_sweep.plan import Request
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
    state,
)
from sae_sweep.tracking import open_comparison_sink

log = logging.getLogger(__name__)


def rematch(request: Request) -> int:
    """Run `task=match`: compare the finished runs of `sweep` again, with this command's `matching` keys.

    Raises:
        SaeSweepError: if there is no such sweep.
    """
    compare_finished(find_sweep(request.command), request.command, request.runs[0].config.device)
    return 0


def compare_finished(folder: SweepFolder, command: CommandConfig, device: str) -> None:
    """Match every pair, write `analysis/matching/`, track the results, and print a table."""
    ids = {run["name"]: run["id"] for run in read_plan(folder)["runs"]}
    names = list(ids)
    lines = [_run_line(name, folder.run(name)) for name in names]
    done = [name for name in names if state(folder.run(name)) == "done"]
    comparison = None
    if len(done) > 1:
        configs = [_config(folder.run(name)) for name in done]
        keys = swept_keys(configs)
        threshold = command.matching.threshold
        entries = [
            _entry(name, ids[name], folder.run(name), config, key, threshold)
            for name, config, key in zip(done, configs, keys, strict=True)
        ]
        comparison = compare(entries, command.matching, device=pick_device(device))
        with hold_sweep(folder):
            files = write_comparison(folder.matching, comparison)
        _track(folder, command, comparison, files)
    show(terminal_summary(lines, comparison) + "\n")


def swept_keys(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Keys of each run whose values differ between runs, by their command-line names."""
    flat = [_named_keys(config) for config in configs]
    varying = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if len({str(one[key]) for one in flat if key in one}) > 1
    ]
    return [{key: one[key] for key in varying if key in one} for one in flat]


def _named_keys(config: RunConfig) -> dict[str, Any]:
    named = {
        "model": config.model.label,
        "layer": config.layer,
        "dataset": config.dataset.name,
        "architecture": config.architecture.kind,
        **{key: getattr(config.architecture, key) for key in config.architecture.uses},
        "dictionary": config.dictionary,
        "seed": config.seed,
    }
    covered = ("model.", "dataset.", "architecture.")
    rest = {
        key: value
        for key, value in flatten(config.weight_keys()).items()
        if key not in named and not key.startswith(covered)
    }
    return {**named, **rest}


def _config(folder: RunFolder) -> RunConfig:
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(folder.config))
        return run_from_dict(plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError, ConfigError) as error:
        raise SaeSweepError(
            f"cannot read {folder.config}: {first_line(error)}; launch the sweep again"
        ) from error


def _entry(
    name: str, run_id: str, folder: RunFolder, config: RunConfig, keys: Mapping[str, Any], threshold: float
) -> ComparisonEntry:
    decoder = load_sae(folder.sae).W_dec.detach()
    metrics = read_json(folder.metrics)
    init_match = metrics["init_match"]
    if metrics.get("init_match_threshold") != threshold:
        init_match = match_to_own_start(decoder, config, run_id, threshold)
    return ComparisonEntry(
        name=name,
        keys=keys,
        decoder=decoder,
        init_match=init_match,
        densities=read_densities(folder.features),
    )


def _run_line(name: str, folder: RunFolder) -> RunLine:
    metrics = read_json(folder.metrics) if folder.metrics.exists() else {}
    known = {key: value for key, value in metrics.items() if value is not None}
    return RunLine(
        name=name,
        status=state(folder),
        tokens=read_status(folder).get("tokens"),
        metrics=known,
        init_match=known.get("init_match"),
    )


def _track(
    folder: SweepFolder, command: CommandConfig, comparison: Comparison, files: ComparisonFiles
) -> None:
    """Send the comparison to W&B: a table of pairs, the figures, and a histogram of similarities."""
    columns = [field.name for field in dataclasses.fields(PairRow)]
    rows = [[_cell(getattr(row, column)) for column in columns] for row in comparison.rows]
    sink = open_comparison_sink(folder, command, comparison.names)
    sink.table("pairs", columns, rows)
    sink.image("matrix", files.matrix_figure)
    sink.image("cosines", files.cosine_figure)
    sink.histogram("top1_cosine", comparison.histogram, list(COSINE_EDGES))
    sink.summary({f"matched_{summary.key}": summary.ratio for summary in comparison.summaries})
    sink.finish()


def _cell(value: Any) -> Any:
    return " + ".join(value) if isinstance(value, tuple) else value
