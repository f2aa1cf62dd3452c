"""What features do, on disk: tables of features, positions and contexts, and the strings of their tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from torch import Tensor

from sae_sweep.analysis.contexts import NOTHING, Contexts
from sae_sweep.analysis.features import FeatureAnalysis
from sae_sweep.analysis.firing import columns
from sae_sweep.report.parquet import write_parquet

DECILES = tuple(tenth / 10 for tenth in range(1, 10))
_TOP_TOKENS = 10
_AT_LEAST = 2
"""Occurrences of a token that its mean activation is taken over: one alone says little."""


class AnalysisFiles(NamedTuple):
    """Files of an analysis in the run's `features/`."""

    features: Path
    """A row per feature: how often and how strongly it fires, deciles, positions, tokens."""
    positions: Path
    """A row per position: activations, errors and losses."""
    contexts: Path
    """A row per context: feature, kind (top or sample), rank, activation; ids and activations around it, in
    which the ranked activation is number `at`."""
    tokens: Path
    """A row per token id: its string, so that no tokenizer is needed to read the other files."""


def write_analysis(
    folder: Path, run_id: str, analysis: FeatureAnalysis, vocabulary: Sequence[str]
) -> AnalysisFiles:
    """Write an analysis into `folder`; each file names its run.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    files = AnalysisFiles(
        *(folder / f"{name}.parquet" for name in ("firing", "positions", "contexts", "tokens"))
    )
    tables = (
        _features(analysis),
        _positions(analysis),
        pyarrow.concat_tables([_contexts("top", analysis.top), _contexts("sample", analysis.sample)]),
        pyarrow.table({"token": np.arange(len(vocabulary), dtype=np.int32), "string": list(vocabulary)}),
    )
    for file, table in zip(files, tables, strict=True):
        write_parquet(file, table.replace_schema_metadata({"run_id": run_id}))
    return files


def _features(analysis: FeatureAnalysis) -> pyarrow.Table:
    by_feature = columns(analysis.firing.by_feature())
    deciles = analysis.quantiles.quantiles(DECILES)
    token, share = analysis.token_sums.shares()
    top = analysis.token_sums.by_mean(_TOP_TOKENS, _AT_LEAST)
    return pyarrow.table(
        {
            "feature": np.arange(len(token), dtype=np.int32),
            **{name: values.numpy() for name, values in by_feature.items()},
            **{f"decile_{tenth}": row.numpy() for tenth, row in enumerate(deciles, 1)},
            "deciles_exact": [analysis.quantiles.exact] * len(token),
            "top_token": _or_null(token, token >= 0),
            "top_token_share": share.numpy(),
            "tokens_by_mean": _lists(top.ids, top.ids >= 0),
            "token_means": _lists(top.means, top.ids >= 0),
            "token_counts": _lists(top.counts, top.ids >= 0),
        }
    )


def _positions(analysis: FeatureAnalysis) -> pyarrow.Table:
    by_position = columns(analysis.firing.by_position())
    return pyarrow.table(
        {
            "position": np.arange(len(by_position["tokens"]), dtype=np.int32),
            **{name: values.numpy() for name, values in by_position.items()},
            **{name: getattr(analysis, name).means.numpy() for name in ("mse", "l1", "ce_clean", "ce_sae")},
        }
    )


def _contexts(kind: str, contexts: Contexts) -> pyarrow.Table:
    there = contexts.sequences != NOTHING
    features, ranks = (part.cpu().numpy().astype(np.int32) for part in there.nonzero(as_tuple=True))
    ids, around = contexts.tokens[there].cpu(), contexts.activations[there].cpu()
    centre, positions = contexts.window.before, contexts.positions[there].cpu()
    return pyarrow.table(
        {
            "feature": features,
            "kind": [kind] * len(features),
            "rank": ranks,
            "sequence": contexts.sequences[there].cpu().numpy(),
            "position": positions.numpy().astype(np.int32),
            "at": positions.clamp(max=centre).numpy().astype(np.int32),
            "activation": around[:, centre].numpy(),
            "tokens": _lists(ids, ids != NOTHING),
            "activations": _lists(around, ids != NOTHING),
        }
    )


def _or_null(values: Tensor, valid: Tensor) -> pyarrow.Array:
    return pyarrow.array(values.numpy(), mask=~valid.numpy())


def _lists(values: Tensor, valid: Tensor) -> pyarrow.Array:
    """A list per row, of its valid values."""
    offsets = torch.nn.functional.pad(valid.sum(1).cumsum(0), (1, 0))
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets.numpy().astype(np.int32)), pyarrow.array(values[valid].numpy())
    )
