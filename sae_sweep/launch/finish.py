"""Finishes a trained run: evaluates the SAE, writes its files, and records the outcome."""

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np

from sae_sweep import logs
from sae_sweep.activations import LanguageModel
from sae_sweep.activations.synthetic import true_features
from sae_sweep.analysis.evaluation import Evaluation, evaluate
from sae_sweep.analysis.losses import Baselines, language_model_baselines
from sae_sweep.analysis.matching import match, match_to_own_start
from sae_sweep.config import RunConfig, SaeSweepError, SyntheticDataset
from sae_sweep.report import run_figures, write_features
from sae_sweep.saes import SAE, evaluated_start, load_sae, save_sae
from sae_sweep.saes.disk import saved_by
from sae_sweep.store import PlannedRun, fault_line, log_traceback, settle, write_metrics
from sae_sweep.store.status import evaluation_keys, provenance, read_status, set_state
from sae_sweep.text import Text, held_out_sequences, token_mask
from sae_sweep.training import MetricSink, Outcome, border, discard_checkpoint

log = logging.getLogger(__name__)

_OF_START = (
    *("explained_variance", "explained_variance_rare", "mse", "mse_rare", "ce_delta", "ce_recovered_zero"),
    *("l0", "alive", "dead"),
)
"""Metrics that are kept of the SAE that a run is fine-tuned from, with `start_` before their names."""


class Evaluator:
    """Evaluates SAEs on the held-out part of one text; caches the tokens and the LM's losses they share."""

    def __init__(self, lm: LanguageModel, source: Text) -> None:
        self._lm = lm
        self._source = source
        self._held_out: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """Tokens and mask by number of tokens wanted."""
        self._baselines: dict[tuple[int, int], Baselines] = {}
        """By layer and number of tokens wanted."""
        self._starts: dict[Hashable, Mapping[str, float]] = {}
        """Metrics of the SAEs that runs are fine-tuned from, by what determines them."""

    def evaluate(self, sae: SAE, config: RunConfig) -> Evaluation:
        """Evaluate an SAE; all configs have the same packing.

        One whose factor of the inputs no batch has given yet gets that of the held-out text.

        Raises:
            SaeSweepError: if the held-out text is too short, or activations or losses are not finite.
        """
        wanted, layer = config.evaluation.tokens, config.layer
        if wanted not in self._held_out:
            tokenizer = self._lm.tokenizer
            tokens = held_out_sequences(self._source, config.packing, tokenizer, wanted)
            self._held_out[wanted] = tokens, token_mask(tokens, tokenizer.special_ids, config.packing)
        tokens, mask = self._held_out[wanted]
        if (layer, wanted) not in self._baselines:
            # keep one layer's residuals: the runs of a group are mostly sorted by layer
            self._baselines = {of: known._replace(residuals=None) for of, known in self._baselines.items()}
            baselines = language_model_baselines(self._lm, tokens, layer, mask, self._lm.device)
            self._baselines[layer, wanted] = baselines
        sae = sae.to(self._lm.device).eval()
        baselines = self._baselines[layer, wanted]
        if sae.input_scale is not None:
            if not sae.input_scale:
                sae.scale_inputs(sae.d_in**0.5 / baselines.mean_norm)
            sae.fold_input_scale()
        return evaluate(sae, self._lm, tokens, layer, mask, config.evaluation, baselines=baselines)

    def evaluate_start(self, config: RunConfig) -> Mapping[str, float]:
        """Metrics of the SAE that a run is fine-tuned from, evaluated once for all runs that share it.

        Raises:
            SaeSweepError: as `evaluate`, or if that SAE cannot be read any more.
        """
        how = config.architecture, config.numerics, config.normalisation
        key = config.init.sae, *how, config.layer, config.evaluation
        if key not in self._starts:
            self._starts[key] = self.evaluate(evaluated_start(config, self._lm.d_model), config).metrics
        return self._starts[key]


class Finisher:
    """Finishes the members of a group as their training ends."""

    def __init__(self, lm: LanguageModel, source: Text, threshold: float, *, together: bool = False) -> None:
        """Create a finisher.

        Args:
            lm: the language model that the group reads.
            source: its text.
            threshold: features above this cosine match the initial dictionary.
            together: whether the members are several, so that a smaller group would leave more memory.
        """
        self._together = together
        self._evaluator = Evaluator(lm, source)
        self._threshold = threshold

    def finish(self, outcome: Outcome, lm_use: Mapping[str, Any]) -> None:
        """Evaluate and write the SAE, or record why the run failed; `lm_use` goes into the status.

        Raises:
            GroupTooLargeError: if memory ran out with several members; the run goes on from its checkpoint.
        """
        run, sink = outcome.member.run, outcome.member.sink
        details = {
            **outcome.member.conditions.as_status(),  # said again: the file may have been deleted meanwhile
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "lm": dict(lm_use),
        }
        if outcome.failed is not None:
            settle([run], "failed", error=outcome.failed, **details)
            close(sink, run, failed=True)
        else:
            self._finish(run, sink, lambda: self._write_results(run, outcome, details), details)

    def evaluate_again(self, run: PlannedRun, sink: MetricSink) -> None:
        """Evaluate an SAE that an earlier launch trained, and replace its metrics, features and figures."""
        status, sae = read_status(run.folder), load_sae(run.folder.sae, run.run_id)
        tokens = status.tokens or run.config.steps * run.config.batch

        def evaluate() -> None:
            sink.rewind(status.history)  # what an earlier evaluation logged again is dropped
            self._write_evaluation(run, sink, sae, tokens, status.seconds)
            if status.state != "done":
                set_state(run, "done")

        self._finish(run, sink, evaluate, {})

    def _finish(
        self, run: PlannedRun, sink: MetricSink, work: Callable[[], None], details: Mapping[str, Any]
    ) -> None:
        """Do the work of a trained run; an error in it fails the run."""
        why: list[str] = []

        def fail(line: str) -> None:
            why.append(f"{line}; it is trained, and the same command evaluates it again")
            log.error("%s: %s", run.name, why[0])

        with border(run.name, fail, remedy="lower evaluation.tokens", together=self._together):
            work()
        if why:
            settle([run], "failed", error=why[0], **details)
        close(sink, run, failed=bool(why))

    def _write_results(self, run: PlannedRun, outcome: Outcome, details: Mapping[str, Any]) -> None:
        """Write all files, the status last: a run is done only when its files exist."""
        if outcome.sae is None:
            raise SaeSweepError(f"{run.name}: no SAE came out of training")
        sae, sink = outcome.sae, outcome.member.sink
        save_sae(sae, run.folder.sae, metadata=_metadata(run))
        self._write_evaluation(run, sink, sae, outcome.tokens, outcome.seconds)
        sink.artifact(run.name, run.folder.sae)
        set_state(run, "done", history=sink.mark(), **details)
        discard_checkpoint(run.folder)

    def _write_evaluation(
        self, run: PlannedRun, sink: MetricSink, sae: SAE, tokens: int, seconds: float | None
    ) -> None:
        """Evaluate the SAE, write features, figures and at last metrics, and log them."""
        evaluation = self._evaluator.evaluate(sae, run.config)
        init_match = match_to_own_start(sae.W_dec, run.config, run.run_id, self._threshold)
        measured = _measured(evaluation, sae, run.config, self._threshold)
        metrics = {
            **measured,
            **self._fine_tuned(run.config, measured, init_match),
            "init_match": init_match,
            "init_match_threshold": self._threshold,
            "trained_tokens": tokens,
            "seconds": math.nan if seconds is None else seconds,
        }
        write_features(run.folder.features, run.run_id, evaluation)
        figures = run_figures(run.folder.features, evaluation, name=run.name, config=run.config.evaluation)
        write_metrics(run.folder, run.run_id, metrics, evaluation_keys(run.config))
        for name, histogram in (
            ("log10_density", evaluation.density_histogram),
            ("activations", evaluation.activation_histogram),
        ):
            sink.histogram(name, list(histogram.counts), list(histogram.edges))
        for figure in figures:
            sink.image(figure.stem, figure)
        sink.summary({f"eval/{key}": float(value) for key, value in metrics.items()})
        log.info("%s: %s", run.name, ", ".join(_said(metrics)))

    def _fine_tuned(
        self, config: RunConfig, measured: Mapping[str, float], init_match: float
    ) -> dict[str, float]:
        """Metrics of the SAE that a run is fine-tuned from, and the share of features that are new."""
        if config.init.sae is None:
            return {}
        start = self._evaluator.evaluate_start(config)
        known = {f"start_{key}": start[key] for key in _OF_START if key in measured and key in start}
        return {**known, "new_features": 1 - init_match}


def _measured(evaluation: Evaluation, sae: SAE, config: RunConfig, threshold: float) -> dict[str, float]:
    """The evaluation's metrics; on synthetic activations the truth's instead of a language model's losses."""
    if not isinstance(config.dataset, SyntheticDataset):
        return evaluation.metrics
    found = match(sae.W_dec.detach().cpu(), true_features(config.dataset), threshold)
    rest = {key: value for key, value in evaluation.metrics.items() if not key.startswith("ce_")}
    return {**rest, "truth_mmcs": found.mmcs_b_to_a, "truth_recovered": found.ratio_b_in_a}


def _said(metrics: Mapping[str, float]) -> Iterator[str]:
    labels = {"explained_variance": "explained variance", "ce_recovered_zero": "CE recovered"}
    labels |= {"truth_recovered": "true features found"}
    for key, label in labels.items():
        if key in metrics:
            before = f"{metrics[f'start_{key}']:.3f} -> " if f"start_{key}" in metrics else ""
            yield f"{label} {before}{metrics[key]:.3f}"
    yield f"L0 {metrics['l0']:.1f}"


def is_trained(run: PlannedRun) -> bool:
    """Whether an earlier launch finished the run, so that at most another evaluation is left.

    Its status has the mark of its history's end; a run that failed before goes on from its checkpoint.
    """
    return read_status(run.folder).history is not None and saved_by(run.folder.sae) == run.run_id


def close(sink: MetricSink, run: PlannedRun, *, failed: bool) -> None:
    """Close a sink, if it is open; an error of it is logged, for everything is in the run's files by then."""

    with logs.only_for(run.name):
        try:
            sink.finish(failed=failed)
        except Exception as error:  # also called while another error passes
            log.warning("%s: its metrics could not be closed: %s", run.name, fault_line(error))
            log_traceback(error)


def _metadata(run: PlannedRun) -> dict[str, object]:
    """Metadata about the activations for `cfg.json`, with SAELens's key names."""
    config = run.config
    return {
        "model_name": config.model.label,
        "model_path": config.model.path,
        "hook_name": config.hook,
        "hook_layer": config.layer,
        "dataset_path": getattr(config.dataset, "path", "") or config.dataset.name,
        "context_size": config.packing.seq_len,
        "prepend_bos": config.packing.bos_every_sequence,
        "exclude_special_tokens": config.packing.mask_special,
        "training_tokens": config.tokens,
        "provenance": provenance(run),
    }
