"""The study's tables as flat records, one a cell: what the CSV files hold."""

from collections.abc import Mapping
from typing import Any

from sae_sweep.study.answers import Answer
from sae_sweep.study.table2 import Table2Row
from sae_sweep.study.tables import CellResult

Record = Mapping[str, Any]


def cell_record(result: CellResult) -> Record:
    """A cell of Table 1 or of Figure 13; shares in per cent, what is not known is None."""
    cell, measured, counted, sought_in = result.cell, result.measured, result.counted, result.sought_in
    return {
        "block": cell.block,
        "row": cell.row,
        "column": cell.column,
        "counted_run": counted and counted.name,
        "sought_in_run": sought_in and sought_in.name,
        "counted": str(cell.counted),
        "sought_in": str(cell.sought_in),
        "measured_percent": measured and 100 * measured.ratio,
        "low_percent": measured and 100 * measured.low,
        "high_percent": measured and 100 * measured.high,
        "n": measured and measured.n,
        "live_percent": measured and percent(measured.live_ratio),
        "n_live": measured and measured.n_live,
        "published_percent": cell.published,
        "difference_points": result.difference,
        "init_match_counted_percent": counted and 100 * counted.init_match,
        "init_match_sought_in_percent": sought_in and 100 * sought_in.init_match,
        "undertrained": result.undertrained,
        "tokens_counted": counted and counted.tokens,
        "tokens_sought_in": sought_in and sought_in.tokens,
        "missing": "; ".join(result.missing),
        "differs": "; ".join(result.differs),
        "footnotes": " ".join(note.mark for note in result.footnotes),
        "choice": cell.choice,
    }


def table2_record(row: Table2Row) -> Record:
    """A cell of Table 2, in features."""
    measured, large, small = row.measured, row.large, row.small
    return {
        "row": row.row,
        "column": row.column,
        "large_run": large and large.name,
        "small_run": small and small.name,
        "measured_features": measured and measured.features,
        "low_features": measured and measured.low,
        "high_features": measured and measured.high,
        "measured_percent_of_small": measured and 100 * measured.features / measured.small,
        "live_features": measured and measured.live,
        "n_large": measured and measured.large,
        "n_small": measured and measured.small,
        "printed_features": row.printed,
        "difference_features": row.difference,
        "recomputed_features": row.recomputed,
        "printed_verdict": row.verdict,
        "init_match_large_percent": large and 100 * large.init_match,
        "init_match_small_percent": small and 100 * small.init_match,
        "undertrained": row.undertrained,
        "tokens_large": large and large.tokens,
        "tokens_small": small and small.tokens,
        "missing": "; ".join(row.missing),
        "differs": "; ".join(row.differs),
        "footnotes": " ".join(note.mark for note in row.footnotes),
        "choice": row.choice,
    }


def answer_record(answer: Answer) -> Record:
    """One way of asking whether the dataset or the seed moves more."""
    return {
        "way": answer.way,
        "where": answer.where,
        "dataset_percent": percent(answer.dataset.ratio),
        "seed_percent": percent(answer.seed.ratio),
        "difference_points": percent(answer.difference),
        "low_points": percent(answer.low),
        "high_points": percent(answer.high),
        "dataset_pairs": answer.dataset.pairs,
        "seed_pairs": answer.seed.pairs,
        "undertrained_dataset_pairs": answer.dataset.undertrained,
        "undertrained_seed_pairs": answer.seed.undertrained,
        "larger": answer.larger,
        "settings": "; ".join(answer.settings),
        "settings_left_out": answer.settings_left_out,
        "missing": "; ".join((*answer.dataset.missing, *answer.seed.missing)),
    }


def percent(share: float | None) -> float | None:
    """A share in per cent; None stays."""
    return None if share is None else 100 * share
