"""The figures of `task=analyse`, a set per group of SAEs that belong together, and the position tables."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from torch import Tensor

from sae_sweep.analysis.bimodality import Bimodality, bimodality
from sae_sweep.analysis.embedding import NEIGHBOURS, random_dictionary, umap_embedding
from sae_sweep.analysis.position_table import AnalysedSAE, PositionRow, position_rows, unshared_rows
from sae_sweep.analysis.positions import PositionTest
from sae_sweep.analysis.spectrum import Spectrum, spectrum
from sae_sweep.config import CommandConfig, RunConfig, SaeSweepError
from sae_sweep.config.plain import flatten
from sae_sweep.config.swept import swept_keys
from sae_sweep.report.analysis_files import analysis_files, read_analysis
from sae_sweep.report.decoder_figures import joint_umap_figure, position_features_figure, umap_figure
from sae_sweep.report.feature_figures import (
    decile_figure,
    density_figure,
    frequency_figure,
    separation_figure,
    strength_figure,
)
from sae_sweep.report.files import write_csv
from sae_sweep.report.formatting import short_labels
from sae_sweep.report.panels import Drawn, Panel, write_drawn
from sae_sweep.report.parquet import write_parquet
from sae_sweep.report.position_figures import (
    STUDY_L1,
    activation_figure,
    lm_loss_figure,
    mean_activation,
    sae_loss_figure,
    spectrum_figure,
    spread_figure,
)
from sae_sweep.signals import raise_if_requested
from sae_sweep.store import SweepFolder, hold_sweep, read_metrics
from sae_sweep.tasks.analysed import Analysed
from sae_sweep.tracking import open_comparison_sink

log = logging.getLogger(__name__)

_MOST_PANELS = 12
"""SAEs of a set that differ in more than their layer."""


_TABLE = "position_features"
_DRAWN_FROM_FEATURES = (
    "mean_by_position",
    "mean_by_position_with_first",
    "spectrum",
    "token_spread",
    "language_model_loss",
    "losses",
    "losses_changed_positions",
    "feature_spread",
    "feature_frequency",
    "density",
    "deciles",
    "separation",
    "position_features",
)
"""Figures of what features do on a text; the others show the decoders alone, which stay as they are."""


class FeatureReport(NamedTuple):
    """What the features of several SAEs show."""

    files: Mapping[str, Path]
    """Worth opening, by what they show."""
    positions: Sequence[PositionRow]


@dataclass(frozen=True)
class Written:
    """An SAE whose analysis is on disk, and its position tests by change of the positional embeddings."""

    sae: Analysed
    tests: Mapping[str, PositionTest]


@dataclass(frozen=True)
class FeatureSet:
    """SAEs that are drawn together."""

    name: str
    """Of its folder."""
    labels: Sequence[str]
    members: Sequence[Written]


def in_layers(saes: Sequence[Analysed]) -> list[list[Analysed]]:
    """Groups of SAEs that differ in nothing but their layer, by layer; others are in none."""
    by_settings: dict[str, list[Analysed]] = {}
    for one in saes:
        by_settings.setdefault(_settings(one.config), []).append(one)
    return [
        sorted(group, key=lambda one: one.config.layer) for group in by_settings.values() if len(group) > 1
    ]


def feature_sets(written: Sequence[Written]) -> list[FeatureSet]:
    """Group SAEs: those that differ in nothing but their layer, and the others, twelve at a time."""
    by_name = {one.sae.name: one for one in written}
    sets = [
        _layers([by_name.pop(one.name) for one in group]) for group in in_layers([one.sae for one in written])
    ]
    return [*sets, *_others(list(by_name.values()))]


def _settings(config: RunConfig) -> str:
    """All that determines a run's weights, except its layer."""
    keys = {key: value for key, value in flatten(config.weight_keys()).items() if key != "layer"}
    return json.dumps(keys, sort_keys=True)


def _layers(group: Sequence[Written]) -> FeatureSet:
    config = group[0].sae.config
    name = config.base_name().replace(f"_L{config.layer}_", "_", 1)
    return FeatureSet(name, [f"layer {one.sae.config.layer}" for one in group], group)


def _others(group: Sequence[Written]) -> Iterator[FeatureSet]:
    names = [one.sae.name for one in group]
    labels = short_labels(names, swept_keys([one.sae.config for one in group])) if len(group) > 1 else names
    for start in range(0, len(group), _MOST_PANELS):
        part = slice(start, start + _MOST_PANELS)
        last = start + len(group[part])
        name = names[start] if last == start + 1 else f"saes_{start + 1}_to_{last}"
        yield FeatureSet(name, labels[part], group[part])


def write_features(sweep: SweepFolder, written: Sequence[Written], command: CommandConfig) -> FeatureReport:
    """Draw the sets of SAEs, write the position tables, and send both to W&B.

    The tables of a sweep lie above its sets; those of an SAE that is analysed alone lie with its figures.

    Raises:
        SaeSweepError: if a file cannot be written or read.
    """
    sets = feature_sets(written)
    folder = sweep.features if command.sae is None else sweep.features / sets[0].name
    drawn: dict[str, Path] = {}
    with hold_sweep(sweep):
        for one in sets:
            log.info("figures of %s, SAEs: %d", one.name, len(one.members))
            for name in _DRAWN_FROM_FEATURES:
                _remove(sweep.features / one.name, name, "png", "svg", "parquet")
            for name, figure in _figures(one, command):
                raise_if_requested()
                drawn[f"{one.name}/{name}"] = write_drawn(sweep.features / one.name, name, figure).png
        rows = _position_tables(written, command)
        for name in rows:
            _remove(folder, name, "csv", "parquet")
        tables = {
            name: pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in found])
            for name, found in rows.items()
            if found
        }
        for name, table in tables.items():
            write_csv(folder / f"{name}.csv", table)
            write_parquet(folder / f"{name}.parquet", table)
    _track(sweep, written, command, drawn, tables)
    files = {"figures": folder}
    files |= {name.replace("_", " "): folder / f"{name}.csv" for name in tables}
    return FeatureReport(files, rows[_TABLE])


def _remove(folder: Path, name: str, *endings: str) -> None:
    """Delete what an earlier analysis left, if it did, so that it does not stand beside newer results."""
    for ending in endings:
        file = folder / f"{name}.{ending}"
        try:
            file.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise SaeSweepError(f"cannot delete {file} of an earlier analysis: {error.strerror}") from error


def _track(
    sweep: SweepFolder,
    written: Sequence[Written],
    command: CommandConfig,
    drawn: Mapping[str, Path],
    tables: Mapping[str, pyarrow.Table],
) -> None:
    sink = open_comparison_sink(sweep, command, [one.sae.name for one in written], what="features")
    for name, path in drawn.items():
        sink.image(f"features/{name}", path)
    for name, table in tables.items():
        rows = [list(row.values()) for row in table.to_pylist()]
        sink.table(f"features/{name}", table.column_names, rows)
    sink.finish()


def _figures(one: FeatureSet, command: CommandConfig) -> Iterator[tuple[str, Drawn]]:
    """The figures of a set, by name; one that cannot be drawn is left out with a warning."""
    for name, draw in _makers(one, command).items():
        try:
            yield name, draw()
        except SaeSweepError as error:
            log.warning("%s of %s is left out: %s", name, one.name, error)


def _makers(one: FeatureSet, command: CommandConfig) -> dict[str, Callable[[], Drawn]]:
    """What draws each figure."""
    panels = [_panel(label, member) for label, member in zip(one.labels, one.members, strict=True)]
    changes, study = panels[0].changes, command.analysis.numerics == "study"
    limits = one.members[0].sae.config.evaluation
    makers: dict[str, Callable[[], Drawn]] = {
        "mean_by_position": lambda: activation_figure(panels),
        "mean_by_position_with_first": lambda: activation_figure(panels, first=True),
        "spectrum": lambda: spectrum_figure(panels, [_spectra(panel, command) for panel in panels]),
        "token_spread": lambda: spread_figure(panels),
        "language_model_loss": lambda: lm_loss_figure(panels[0], _model_and_text(one)),
        "losses": lambda: sae_loss_figure(panels),
        "feature_spread": lambda: strength_figure(panels),
        "feature_frequency": lambda: frequency_figure(panels, limits),
        "density": lambda: density_figure(panels, limits),
        "deciles": lambda: decile_figure(panels, study=study),
    }
    if len(changes) > 1:
        makers["losses_changed_positions"] = (
            (lambda: sae_loss_figure(panels, changes[1:], ce=False, l1=STUDY_L1))
            if study
            else lambda: sae_loss_figure(panels, changes)
        )
    if len(one.members) > 1 and one.labels[0].startswith("layer ") and one.members[0].tests:
        makers["position_features"] = lambda: _position_features(one, command)
    if command.figures == "paper":
        makers["separation"] = lambda: separation_figure(panels, _separations(panels))
        makers |= _umap_makers(one, panels, command)
    return makers


def _model_and_text(one: FeatureSet) -> str:
    """What the first SAE of a set reads, and whether others read something else."""
    configs = [member.sae.config for member in one.members]
    names = list(dict.fromkeys(f"{config.model.label} on {config.dataset.name}" for config in configs))
    return names[0] if len(names) == 1 else f"{names[0]}, the first of {len(names)} that these SAEs read"


def _position_features(one: FeatureSet, command: CommandConfig) -> Drawn:
    analysed = _analysed(one.members, command)
    unshared = unshared_rows(analysed, command.matching.threshold, seed=command.analysis.seed)
    return position_features_figure(position_rows(analysed), unshared)


def _umap_makers(
    one: FeatureSet, panels: Sequence[Panel], command: CommandConfig
) -> dict[str, Callable[[], Drawn]]:
    """UMAP of each decoder and, if they are several of one width, of all together."""
    seed = command.analysis.seed
    settings = f"UMAP: euclidean, {NEIGHBOURS} neighbours, seed {seed}"
    decoders = [member.sae.load().W_dec.detach().cpu() for member in one.members]
    if command.analysis.numerics == "study":
        panels = [
            dataclasses.replace(panel, label=f"layer {member.sae.config.layer + 1} (from 1)")
            for panel, member in zip(panels, one.members, strict=True)
        ]

    def embedded(rows: Sequence[Tensor]) -> np.ndarray:
        raise_if_requested()
        return umap_embedding(torch.cat(list(rows)), seed=seed)

    def separate() -> Drawn:
        random = embedded([random_dictionary(decoders[0], seed)])
        return umap_figure(panels, [embedded([rows]) for rows in decoders], random, settings=settings)

    def joint() -> Drawn:
        random = [random_dictionary(rows, seed + number) for number, rows in enumerate(decoders)]
        return joint_umap_figure(panels, embedded(decoders), embedded(random), settings=settings)

    makers: dict[str, Callable[[], Drawn]] = {"decoder_umap": separate}
    if len(decoders) > 1 and len({rows.shape[1] for rows in decoders}) == 1:
        makers["decoder_umap_joint"] = joint
    return makers


def _panel(label: str, member: Written) -> Panel:
    files = analysis_files(member.sae.folder.features)
    features, positions = (
        read_analysis(path, member.sae.owner) for path in (files.features, files.positions)
    )
    return Panel(label, member.sae.name, features, positions, member.sae.trained)


def _spectra(panel: Panel, command: CommandConfig) -> dict[str, Spectrum]:
    return {
        change: spectrum(torch.from_numpy(mean_activation(panel, change)), seed=command.analysis.seed)
        for change in panel.changes
    }


def _separations(panels: Sequence[Panel]) -> list[Bimodality]:
    return [bimodality(torch.from_numpy(panel.feature("mean"))) for panel in panels]


def _position_tables(written: Sequence[Written], command: CommandConfig) -> dict[str, Sequence[Any]]:
    """Position features by layer and change, and among what the next layer does not share."""
    analysed = _analysed(written, command)
    return {
        _TABLE: position_rows(analysed),
        f"unshared_{_TABLE}": unshared_rows(analysed, command.matching.threshold, seed=command.analysis.seed),
    }


def _analysed(written: Sequence[Written], command: CommandConfig) -> list[AnalysedSAE]:
    found = []
    for one in (one for one in written if one.tests):
        sae, decoder = one.sae, one.sae.load().W_dec.detach()
        settings, undertrained = _settings(sae.config), _undertrained(sae, command)
        found += [
            AnalysedSAE(sae.name, sae.config.layer, settings, decoder, test, change, undertrained)
            for change, test in one.tests.items()
        ]
    return found


def _undertrained(sae: Analysed, command: CommandConfig) -> bool | None:
    """Whether a run is marked undertrained; None for an SAE that is no run, or whose metrics are gone."""
    if sae.run is None:
        return None
    try:
        match = read_metrics(sae.folder, sae.owner).init_match
    except SaeSweepError as error:
        log.warning("%s: %s", sae.name, error)
        return None
    return None if match is None else match > command.matching.undertrained
