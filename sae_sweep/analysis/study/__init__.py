"""The study's tables, computed from any sweep and set beside what was published; torch alone is enough."""

from sae_sweep.analysis.study.answers import (
    DATASET_MORE,
    OWN_STARTS,
    SEED_MORE,
    SHARED_STARTS,
    UNDECIDED,
    Answer,
    PairGroup,
    dataset_or_seed,
)
from sae_sweep.analysis.study.cells import CHOICES, FIGURE13_LAYERS, Cell, figure13_cells, table1_cells
from sae_sweep.analysis.study.published import Footnote, Published, RunFacts, published
from sae_sweep.analysis.study.runs import StudyRun
from sae_sweep.analysis.study.settings import Setting
from sae_sweep.analysis.study.shares import Share, Shares
from sae_sweep.analysis.study.table2 import (
    DOES_NOT_FOLLOW,
    FOLLOWS,
    TRUNCATED,
    Surplus,
    Table2Row,
    recompute_table2,
)
from sae_sweep.analysis.study.tables import CellResult, StudyTables, study_tables

__all__ = [
    "CHOICES",
    "DATASET_MORE",
    "DOES_NOT_FOLLOW",
    "FIGURE13_LAYERS",
    "FOLLOWS",
    "OWN_STARTS",
    "SEED_MORE",
    "SHARED_STARTS",
    "TRUNCATED",
    "UNDECIDED",
    "Answer",
    "Cell",
    "CellResult",
    "Footnote",
    "PairGroup",
    "Published",
    "RunFacts",
    "Setting",
    "Share",
    "Shares",
    "StudyRun",
    "StudyTables",
    "Surplus",
    "Table2Row",
    "dataset_or_seed",
    "figure13_cells",
    "published",
    "recompute_table2",
    "study_tables",
    "table1_cells",
]
