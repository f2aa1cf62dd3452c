"""Finished runs of a sweep folder in the study's terms; damaged ones are named and left out."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import ConfigError, RunConfig, SaeSweepError, flatten, typed
from sae_sweep.report import read_densities
from sae_sweep.saes import load_sae
from sae_sweep.store import (
    RunFolder,
    SweepFolder,
    planned_run,
    read_metrics,
    read_plan,
    read_shown_status,
    unreadable,
)
from sae_sweep.study.config import StudyConfig
from sae_sweep.study.runs import StudyRun

log = logging.getLogger(__name__)

_DECODERS_IN_MEMORY = 16
"""38 MB each at the study's largest size."""
_FACTS = (
    *("architecture.kind", "architecture.k", "architecture.l0_coefficient"),
    *("dictionary", "layer", "seed", "tokens"),
)
"""Keys that a `StudyRun` has fields for; all others go into `rest`."""


@dataclass(frozen=True)
class FinishedRuns:
    """Result of `finished_runs`."""

    runs: tuple[StudyRun, ...]
    """In the order of the plan."""
    config: RunConfig
    """Config of the first run of the plan."""
    study: StudyConfig
    """How the sweep stands in for the study."""
    planned: int
    damaged: tuple[str, ...]
    """Names of finished runs whose files cannot be read."""
    both_starts: bool
    """Whether the plan has both runs with shared starts and runs with own starts, finished or not."""
    left_out: tuple[str, ...]
    """One line per finished run that cannot be compared with the first: another model or d_in."""


def finished_runs(folder: SweepFolder, threshold: float, command: StudyConfig | None = None) -> FinishedRuns:
    """Read every finished run once; its weights are read again on demand.

    Args:
        folder: the sweep's folder.
        threshold: threshold of the comparison; if a run was trained with another one, its match to its own
            start is computed again.
        command: `study` keys of this command; those at their defaults are read from the sweep.

    Raises:
        SaeSweepError: if the plan is damaged.
    """
    plan = read_plan(folder)
    planned = plan["runs"]
    study = merged(_kept(folder, plan), command or StudyConfig())
    runs, widths, damaged = [], [], []
    starts: set[bool] = set()
    first: RunConfig | None = None
    decoder = _decoder_reader()
    for entry in planned:
        try:
            config = planned_run(entry, folder).config
            first = first or config
            starts.add(config.init.shared)
            if read_shown_status(folder.run(entry["name"]), entry["id"]).state == "done":
                run = _study_run(entry, folder.run(entry["name"]), config, study, decoder, threshold)
                runs.append(run)
                widths.append(run.decoder().shape[1])
        except SaeSweepError as error:
            log.error("%s is left out: %s", entry["name"], error)
            damaged.append(entry["name"])
    if first is None:
        raise SaeSweepError(f"{folder.plan}: no run in it can be read; launch the sweep again")
    comparable, left_out = _comparable(runs, widths, first)
    return FinishedRuns(
        runs=comparable,
        config=first,
        study=study,
        planned=len(planned),
        damaged=tuple(damaged),
        both_starts=len(starts) > 1,
        left_out=left_out,
    )


def _kept(folder: SweepFolder, plan: Mapping[str, Any]) -> StudyConfig:
    """The study keys of the command that planned the sweep; version 0.1.0 wrote them into its runs."""
    in_runs = [run["config"]["study"] for run in plan["runs"] if "study" in run["config"]]
    try:
        kept: StudyConfig = typed(plan.get("study") or (in_runs or [{}])[0], StudyConfig, "study")
        if problems := kept.problems():
            raise ConfigError(problems)
    except ConfigError as error:
        raise unreadable(folder.plan, error, "move it away and launch the sweep again") from error
    return kept


def _comparable(
    runs: Sequence[StudyRun], widths: Sequence[int], first: RunConfig
) -> tuple[tuple[StudyRun, ...], tuple[str, ...]]:
    """The runs of the first run's model and width, and one line per other run."""
    kept: list[StudyRun] = []
    lines: list[str] = []
    width: int | None = None
    for run, d_in in zip(runs, widths, strict=True):
        model = (run.rest["model.path"], run.rest["model.revision"])
        if model != (first.model.path, first.model.revision):
            at = f" at {model[1]}" if model[1] else ""
            lines.append(f"{run.name} is left out: its model is {model[0]}{at}, not {first.model.label}")
        elif width is not None and d_in != width:
            lines.append(f"{run.name} is left out: its d_in is {d_in}, not {width}")
        else:
            width = d_in
            kept.append(run)
    for line in lines:
        log.warning("%s", line)
    return tuple(kept), tuple(lines)


def merged(sweep: StudyConfig, command: StudyConfig) -> StudyConfig:
    """Keys of the command that are not at their defaults, and the sweep's for the others."""
    usual = dataclasses.asdict(StudyConfig())
    typed = {key: value for key, value in dataclasses.asdict(command).items() if value != usual[key]}
    if "datasets" in typed:
        typed["datasets"] = {**sweep.datasets, **typed["datasets"]}
    return dataclasses.replace(sweep, **typed)


def _decoder_reader() -> Callable[[RunFolder, str], Tensor]:
    """A function that reads `W_dec` and caches the latest ones."""

    @functools.lru_cache(_DECODERS_IN_MEMORY)
    def read(folder: RunFolder, run_id: str) -> Tensor:
        return load_sae(folder.sae, run_id).W_dec.detach().clone()

    return read


def _study_run(
    entry: Mapping[str, Any],
    folder: RunFolder,
    config: RunConfig,
    study: StudyConfig,
    decoder: Callable[[RunFolder, str], Tensor],
    threshold: float,
) -> StudyRun:
    metrics = read_metrics(folder, entry["id"])
    rows = decoder(folder, entry["id"])
    densities = read_densities(folder.features, entry["id"], len(rows))
    architecture = config.architecture
    coefficient = getattr(architecture, "l0_coefficient", None)
    init_match = metrics.init_match
    if metrics.values.get("init_match_threshold") != threshold:
        init_match = match_to_own_start(rows, config, entry["id"], threshold)
    return StudyRun(
        name=entry["name"],
        architecture=architecture.kind,
        dictionary=config.dictionary,
        k=getattr(architecture, "k", None),
        l0_coefficient=None if coefficient is None else coefficient / study.l0_scale,
        dataset=_role(config.dataset.name, study.datasets),
        layer=config.layer,
        seed=config.seed,
        init_shared=config.init.shared,
        tokens=config.tokens,
        init_match=init_match,
        decoder=functools.partial(decoder, folder, entry["id"]),
        densities=lambda: densities,
        rest=_rest(config),
        explained_variance=metrics.values.get("explained_variance"),
        mixed=bool(read_shown_status(folder, entry["id"]).mixed),
    )


def _role(name: str, stand_ins: Mapping[str, str]) -> str:
    """The study's dataset that this one stands in for, else its own name."""
    return next((role for role, text in stand_ins.items() if text == name), name)


def _rest(config: RunConfig) -> dict[str, Any]:
    """All other keys that determine the weights."""
    return {key: value for key, value in flatten(config.weight_keys()).items() if key not in _FACTS}
