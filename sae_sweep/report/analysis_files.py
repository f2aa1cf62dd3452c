"""What features do, on disk: tables of features, positions and contexts, and the strings of their tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from torch import Tensor

from sae_sweep.analysis.contexts import NOTHING, Excerpts, tenth_of
from sae_sweep.analysis.feature_results import UNCHANGED, FeatureResults
from sae_sweep.analysis.features import PositionAnalysis
from sae_sweep.analysis.firing import columns
from sae_sweep.config import escaped
from sae_sweep.report.parquet import read_parquet, write_parquet
from sae_sweep.store import unreadable

DECILES = tuple(tenth / 10 for tenth in range(1, 10))
_RUN_ID = "run_id"
"""In each file's metadata."""
_REMEDY = "run task=analyse again"
_TOP_TOKENS = 10
_AT_LEAST = 2
"""Occurrences of a token that its mean activation is taken over: one alone says little."""


class AnalysisFiles(NamedTuple):
    """Files of an analysis in the run's `features/`."""

    features: Path
    """A row per feature: how often and how strongly it fires, its positions, tokens, partners and logits."""
    positions: Path
    """A row per change of the positional embeddings and position: activations, errors and losses."""
    contexts: Path
    """A row per context: feature, kind (top or sample), rank, activation and its decile among the feature's
    activations (1 to 10); ids and activations around it, in which the ranked activation is number `at`."""
    tokens: Path
    """A row per token id: its string, so that no tokenizer is needed to read the other files."""


def analysis_files(folder: Path) -> AnalysisFiles:
    """The files of an analysis in a run's `features/`."""
    return AnalysisFiles(
        *(folder / f"{name}.parquet" for name in ("firing", "positions", "contexts", "tokens"))
    )


def write_analysis(
    folder: Path, run_id: str, results: FeatureResults, vocabulary: Sequence[str]
) -> AnalysisFiles:
    """Write what was found about an SAE's features into `folder`; each file names its run.

    Raises:
        SaeSweepError: if a file cannot be written; none is left incomplete.
    """
    files, analysis = analysis_files(folder), results.analysis
    deciles = analysis.quantiles.quantiles(DECILES)
    sample = analysis.sample.by_decile(deciles, analysis.kept.per_decile)
    contexts = [
        _contexts(kind, found, analysis.kept.window.before, deciles)
        for kind, found in (("top", analysis.top.excerpts()), ("sample", sample))
    ]
    tables = (
        _features(results, deciles),
        pyarrow.concat_tables(
            [_positions(change, one) for change, one in {UNCHANGED: analysis, **results.changed}.items()]
        ),
        pyarrow.concat_tables(contexts),
        pyarrow.table({"token": np.arange(len(vocabulary), dtype=np.int32), "string": list(vocabulary)}),
    )
    for file, table in zip(files, tables, strict=True):
        write_parquet(file, table.replace_schema_metadata({_RUN_ID: run_id}))
    return files


def read_analysis(path: Path, run_id: str, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Read columns of a file of an analysis; None: all of them.

    Raises:
        SaeSweepError: one line with the file and the remedy, if it is missing, damaged, or another run's.
    """
    table = read_parquet(path, columns, _REMEDY)
    if (owner := _owner(table)) != run_id:
        raise unreadable(path, f"it is of run {escaped(owner)}, not {run_id}", _REMEDY)
    return table


def analysis_owner(folder: Path) -> str | None:
    """The id of the run, or the checksum of the SAE, whose analysis a `features/` holds; None without one.

    Raises:
        SaeSweepError: one line with the file, if it is damaged.
    """
    file = analysis_files(folder).features
    return _owner(read_parquet(file, ["feature"], _REMEDY)) if file.is_file() else None


def _owner(table: pyarrow.Table) -> str:
    return (table.schema.metadata or {}).get(_RUN_ID.encode(), b"").decode(errors="replace")


def _features(results: FeatureResults, deciles: Tensor) -> pyarrow.Table:
    analysis = results.analysis
    by_feature = columns(analysis.firing.by_feature())
    token, share = analysis.token_sums.shares()
    top = analysis.token_sums.by_mean(_TOP_TOKENS, _AT_LEAST)
    table: dict[str, Any] = {
        "feature": np.arange(len(token), dtype=np.int32),
        **{name: values.numpy() for name, values in by_feature.items()},
        **{f"decile_{tenth}": row.numpy() for tenth, row in enumerate(deciles, 1)},
        "deciles_exact": [analysis.quantiles.exact] * len(token),
        "top_token": _or_null(token, token >= 0),
        "top_token_share": share.numpy(),
        "top_tokens_exact": [not analysis.token_sums.dropped] * len(token),
        "tokens_by_mean": _lists(top.ids, top.ids >= 0),
        "token_means": _lists(top.means, top.ids >= 0),
        "token_counts": _lists(top.counts, top.ids >= 0),
    }
    return pyarrow.table(table | _partners(results) | _effects(results) | _tests(results))


def _partners(results: FeatureResults) -> dict[str, Any]:
    ids, counts, jaccard, tokens = results.partners
    return {
        "partner_tokens": np.full(len(ids), tokens),
        "partners": _lists(ids, ids >= 0),
        "partner_counts": _lists(counts, ids >= 0),
        "partner_jaccard": _lists(jaccard, ids >= 0),
    }


def _effects(results: FeatureResults) -> dict[str, pyarrow.Array]:
    if results.effects is None:
        return {}
    return {
        name: _lists(values, torch.ones_like(values, dtype=torch.bool))
        for name, values in results.effects._asdict().items()
    }


def _tests(results: FeatureResults) -> dict[str, Any]:
    """Share, largest share of the null, and verdict; `position_share_zero` etc. for changed embeddings.

    The verdict is null for a feature that does not fire.
    """
    found: dict[str, Any] = {}
    for change, test in results.tests.items():
        suffix = "" if change == UNCHANGED else f"_{change}"
        # with the embeddings as they are, it replaces that over all text: the test may have read less
        found[f"position_share{suffix}"] = test.position_share.numpy()
        found[f"position_null{suffix}"] = test.null_maximum.numpy()
        found[f"position_feature{suffix}"] = _or_null(test.passes, test.live)
    return found


def _positions(change: str, analysis: PositionAnalysis) -> pyarrow.Table:
    by_position = columns(analysis.firing.by_position())
    special = columns(analysis.special.statistics())
    return pyarrow.table(
        {
            "positions": [change] * analysis.seq_len,
            "position": np.arange(len(by_position["tokens"]), dtype=np.int32),
            **{name: values.numpy() for name, values in by_position.items()},
            **{f"special_{name}": values.numpy() for name, values in special.items()},
            **{name: getattr(analysis, name).means.numpy() for name in ("mse", "l1", "ce_clean", "ce_sae")},
        }
    )


def _contexts(kind: str, found: Excerpts, centre: int, deciles: Tensor) -> pyarrow.Table:
    """Rows of excerpts whose ranked activation is number `centre` of their windows."""
    around = found.activations.cpu().numpy()
    tenths = tenth_of(found.activations[:, centre].cpu(), deciles[:, found.features.cpu()])
    shown = found.tokens.cpu() != NOTHING
    return pyarrow.table(
        {
            "feature": found.features.cpu().numpy().astype(np.int32),
            "kind": [kind] * len(around),
            "rank": found.ranks.cpu().numpy().astype(np.int32),
            "sequence": found.sequences.cpu().numpy(),
            "position": found.positions.cpu().numpy().astype(np.int32),
            "at": found.positions.clamp(max=centre).cpu().numpy().astype(np.int32),
            "activation": around[:, centre],
            "decile": tenths.numpy().astype(np.int8),
            "tokens": _lists(found.tokens.cpu(), shown),
            "activations": _lists(found.activations.cpu(), shown),
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
