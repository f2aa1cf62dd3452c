"""Finishes a trained run: evaluates the SAE, writes its files, and records the outcome."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_sweep import logs
from sae_sweep.activations import LanguageModel
from sae_sweep.analysis.evaluation import Baselines, Evaluation, evaluate, language_model_baselines
from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import RunConfig, SaeSweepError, first_line
from sae_sweep.plan.plan import PlannedRun
from sae_sweep.report import run_figures, write_features
from sae_sweep.saes import SAE, save_sae
from sae_sweep.store import write_metrics
from sae_sweep.store.status import provenance, set_state
from sae_sweep.text import TextSource, held_out_sequences, token_mask
from sae_sweep.training import Outcome, discard_checkpoint, out_of_memory

log = logging.getLogger(__name__)


class Finisher:
    """Finishes the members of a group as their training ends; caches the text and LM baselines they share."""

    def __init__(self, lm: LanguageModel, source: TextSource, threshold: float) -> None:
        """Create a finisher; features above the cosine `threshold` match the initial dictionary."""
        self._lm = lm
        self._source = source
        self._threshold = threshold
        self._held_out: tuple[np.ndarray, np.ndarray] | None = None
        self._baselines: dict[int, Baselines] = {}

    def finish(self, outcome: Outcome, lm_use: Mapping[str, Any]) -> None:
        """Evaluate and write the SAE, or record why the run failed; `lm_use` goes into the status."""
        run = outcome.member.run
        details = {"tokens": outcome.tokens, "seconds": outcome.seconds, "lm": dict(lm_use)}
        with logs.only_for(run.name):
            error = outcome.failed
            if error is None:
                try:
                    self._write_results(run, outcome, details)
                except SaeSweepError as problem:
                    error = str(problem)
                except RuntimeError as problem:
                    if not out_of_memory(problem):
                        raise
                    error = (
                        f"memory ran out in the evaluation ({first_line(problem)}): the same command, "
                        "with a lower launcher.max_group, goes on from there"
                    )
            if error is not None:
                log.error("%s: %s", run.name, error)
                set_state(run, "failed", error=error, **details)
            outcome.member.sink.finish(failed=error is not None)

    def _write_results(self, run: PlannedRun, outcome: Outcome, details: Mapping[str, Any]) -> None:
        """Write all files, the status last: a run is done only when its files exist."""
        sae, sink = outcome.sae, outcome.member.sink
        if sae is None:
            raise SaeSweepError(f"{run.name}: no SAE came out of training")
        evaluation = self._evaluate(sae, run.config)
        metrics = {
            **evaluation.metrics,
            "init_match": match_to_own_start(sae.W_dec, run.config, run.run_id, self._threshold),
            "init_match_threshold": self._threshold,
            "trained_tokens": outcome.tokens,
            "seconds": outcome.seconds,
        }
        save_sae(sae, run.folder.sae, metadata=_metadata(run))
        write_features(run.folder.features, evaluation)
        figures = run_figures(run.folder.features, evaluation, name=run.name, config=run.config.evaluation)
        write_metrics(run.folder, metrics, dataclasses.asdict(run.config.evaluation))
        for name, histogram in (
            ("log10_density", evaluation.density_histogram),
            ("activations", evaluation.activation_histogram),
        ):
            sink.histogram(name, list(histogram.counts), list(histogram.edges))
        for figure in figures:
            sink.image(figure.stem, figure)
        sink.summary({f"eval/{key}": float(value) for key, value in metrics.items()})
        sink.artifact(run.name, run.folder.sae)
        set_state(run, "done", **details)
        discard_checkpoint(run.folder)
        log.info(
            "%s: done, explained variance %.3f, CE recovered %.3f, L0 %.1f",
            *(run.name, metrics["explained_variance"], metrics["ce_recovered_zero"], metrics["l0"]),
        )

    def _evaluate(self, sae: SAE, config: RunConfig) -> Evaluation:
        if self._held_out is None:
            tokenizer = self._lm.tokenizer
            tokens = held_out_sequences(self._source, config.packing, tokenizer, config.evaluation.tokens)
            self._held_out = tokens, token_mask(tokens, tokenizer.special_ids, config.packing)
        tokens, mask = self._held_out
        layer = config.layer
        if layer not in self._baselines:
            # keep one layer's residuals: the runs of a group are mostly sorted by layer
            self._baselines = {of: known._replace(residuals=None) for of, known in self._baselines.items()}
            self._baselines[layer] = language_model_baselines(self._lm, tokens, layer, mask, self._lm.device)
        sae = sae.to(self._lm.device).eval()
        return evaluate(
            sae, self._lm, tokens, layer, mask, config.evaluation, baselines=self._baselines[layer]
        )


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
