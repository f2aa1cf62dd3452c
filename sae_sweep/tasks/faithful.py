"""`task=faithful`: SFR and FFR of the SAEs of each text of a sweep, beside those of the text it sampled."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from sae_sweep.activations import LanguageModel, weights_fingerprint
from sae_sweep.activations.model_files import same_model
from sae_sweep.analysis.bootstrap import estimate_over_seeds
from sae_sweep.analysis.faithfulness import (
    ACTIVE_ABOVE,
    NOISE_TOKENS,
    TextResult,
    activity,
    fake,
    follow_seeds,
    noise,
    pooled,
)
from sae_sweep.analysis.features import Subject
from sae_sweep.config import FaithfulDataset, RunConfig, SaeSweepError
from sae_sweep.launch.group import Models
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report.faithful_files import LEVELS, Sensitivity, faithful_text, write_faithful
from sae_sweep.signals import deferred, raise_if_requested, stop_signals
from sae_sweep.store import SweepFolder, find_sweep, hold_sweep, planned_run, read_plan, state
from sae_sweep.tasks.finished import Finished, read_finished, with_keys
from sae_sweep.tasks.followed import steps
from sae_sweep.tasks.report import show_report
from sae_sweep.tasks.tracked import track_section

log = logging.getLogger(__name__)


def faithful(request: Request) -> int:
    """Measure the finished SAEs of a sweep, write `analysis/faithful/` with a section of the page, and print.

    Returns the number of runs that are left out because a file of theirs is damaged.

    Raises:
        SaeSweepError: if there is no such sweep, or nothing in it to measure.
    """
    command, folder = request.command, find_sweep(request.command)
    found, left_out = _read(folder, command.matching.threshold)
    if not found:
        raise SaeSweepError(f"{folder.root}: no run is finished, so no SAE can be measured")
    with stop_signals():
        shares = _activity(found, request.runs[0].config.device)
        groups = _groups(found)
        results = [
            _measure(setting, text, runs, shares, command.matching.undertrained)
            for (setting, text), runs in groups.items()
        ]
        sensitivity = [
            Sensitivity(result.setting, result.text, [shares[name] for name in result.runs])
            for result in results
        ]
    if alone := dict.fromkeys(one.text for one in results if not one.pairs):
        log.warning(
            "SFR compares seeds, and there is one of %s: train others, such as seed=42,49", ", ".join(alone)
        )
    with hold_sweep(folder), deferred():
        files = write_faithful(folder.faithful, results, sensitivity)
    track_section(folder, command, folder.faithful, _numbers(results))
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    show(faithful_text(results, width) + "\n\n")
    show_report(folder, files, left_out)
    return len(left_out)


def _numbers(results: Sequence[TextResult]) -> dict[str, float]:
    """SFR and FFR by text, of SAEs that trained enough."""
    return {
        f"{measure}/{one.text} {one.setting}".strip(): sample.estimate().value
        for one in results
        if not one.undertrained
        for measure, sample in (("SFR", one.sfr), ("FFR", one.ffr))
    }


def _read(folder: SweepFolder, threshold: float) -> tuple[list[Finished], dict[str, str]]:
    """The finished runs, and a line for each that is damaged, by name."""
    found, left_out = [], {}
    for record in read_plan(folder)["runs"]:
        name = record["name"]
        try:
            run = planned_run(record, folder)
            if state(run.folder) == "done":
                found.append(read_finished(run, threshold))
        except SaeSweepError as error:
            log.error("%s is left out: %s", name, error)
            left_out[name] = f"{name} is left out of SFR and FFR: {error}"
    return (with_keys(found) if found else []), left_out


def _groups(found: Sequence[Finished]) -> dict[tuple[str, str], list[Finished]]:
    """Runs that differ in their seeds alone, by setting and text."""
    groups: dict[tuple[str, str], list[Finished]] = {}
    for one in found:
        keys = dict(one.entry.keys)
        text = str(keys.pop("dataset", one.config.dataset.name))
        keys.pop("seed", None)
        setting = ", ".join(f"{key}={value}" for key, value in keys.items())
        groups.setdefault((setting, text), []).append(one)
    return groups


def _activity(found: Sequence[Finished], device: str) -> dict[str, Tensor]:
    """Activity on noise of every SAE, at all levels; SAEs of one model and length share its passes."""
    parts: dict[tuple[str, int], list[Finished]] = {}
    for one in found:
        parts.setdefault((one.hook[0], one.config.packing.seq_len), []).append(one)
    models = Models()
    shares: dict[str, Tensor] = {}
    for (_, seq_len), runs in parts.items():
        lm = models.get(replace(runs[0].config, device=device))
        for one in runs:
            _refuse_another_model(one, lm)
        sequences = noise(NOISE_TOKENS, seq_len, lm.tokenizer.size, lm.tokenizer.bos_id)
        subjects = {
            one.entry.name: Subject(one.reader.load().to(lm.device).eval(), one.config.layer) for one in runs
        }
        with steps(f"FFR of {len(runs)} SAEs", "tokens") as progress:
            shares |= activity(subjects, lm, sequences, LEVELS, progress)
    return shares


def _refuse_another_model(one: Finished, lm: LanguageModel) -> None:
    """Refuse a run whose model is no longer the one that it was trained on."""
    weights = one.run.fingerprints.get("model")
    if (
        weights not in (None, weights_fingerprint(one.config.model))
        or len(one.entry.decoder[0]) != lm.d_model
    ):
        raise SaeSweepError(
            f"{one.entry.name} was trained on other weights than model.path={one.config.model.path} has now: "
            "put back what was there"
        )


def _reads_own_text(config: RunConfig) -> bool:
    """Whether the language model that is read sampled the text itself."""
    dataset = config.dataset
    try:
        return isinstance(dataset, FaithfulDataset) and same_model(dataset.model, config.model)
    except SaeSweepError:  # the model of another path is gone
        return False


def _measure(
    setting: str,
    text: str,
    runs: Sequence[Finished],
    shares: Mapping[str, Tensor],
    undertrained: float,
) -> TextResult:
    followed = follow_seeds([one.entry.decoder for one in runs], between=raise_if_requested)
    seeds = list(combinations([str(one.config.seed) for one in runs], 2))
    fakes = [fake(shares[one.entry.name][LEVELS.index(ACTIVE_ABOVE)]) for one in runs]
    return TextResult(
        setting=setting,
        text=text,
        sampled=_reads_own_text(runs[0].config),
        runs=tuple(one.entry.name for one in runs),
        undertrained=any(one.entry.init_match > undertrained for one in runs),
        pairs=len(seeds),
        sfr=pooled(followed.shared),
        ffr=pooled(torch.stack(fakes).gather(1, followed.rows)),
        sfr_over_seeds=estimate_over_seeds(seeds, followed.shared.double().mean(1).tolist()),
    )
