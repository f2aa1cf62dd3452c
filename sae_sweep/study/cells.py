"""The cells of the study's tables: which two SAEs each compares, and in which direction.

Where the study does not say, the choice is ours and stands in the cell: k = 16, the JumpReLU coefficient
0.0018, seed 49 but for the seed rows, and "A-B" counts features of B, as the study's code does.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sae_sweep.study.published import Published, RunFacts, published

L0_COEFFICIENT = 0.0018
"""Of the JumpReLU cells: the middle one of the three in Table 3."""
FIGURE13_KS = (16, 32)
FIGURE13_LAYERS = range(12)
_FIGURE13_DATASET = "tinystories"
_OTHER_SEED = 42
_A_IN_B = "The study does not say whose features A-B counts: here those of B, as in its code (B found in A)."
_X_IN_Y = "X in Y counts features of X."
CHOICES = {
    "dataset": f"{_A_IN_B} k=16 and seed 49 are the baseline's.",
    "dictionary_large_in_small": f"{_X_IN_Y} k=16 and seed 49: the baseline, not named for these rows.",
    "dictionary_small_in_large": f"{_X_IN_Y} k=16 and seed 49: the baseline, not named for these rows.",
    "seed_42_49": "The study does not say whose features count: here those of seed 49, found in seed 42.",
    "architecture": f"{_A_IN_B} The study names no sparsity: here k=16 and l0_coefficient=0.0018, seed 49.",
    "sparsity": f"{_A_IN_B} TopK, seed 49.",
    "figure13": "Counted are features of the later layer, found in the earlier; TopK, seed 49.",
}
"""Block -> what the study leaves open, and what is taken here."""


@dataclass(frozen=True)
class Cell:
    """One number of a table: the share of one SAE's features that have a match in another."""

    block: str
    """Block of Table 1, or `figure13_k16`, `figure13_k32`."""
    row: str
    """As the study writes it, for example `12288in3072`."""
    column: str
    """Dataset of the column; empty in the dataset block and in Figure 13."""
    counted: RunFacts
    """Its features are counted: they are the denominator."""
    sought_in: RunFacts
    """Its features are what those are matched with."""
    published: float | None
    """Per cent; None where the study shows a colour and no number."""
    choice: str
    """What the study leaves open here, and what was taken."""

    @property
    def key(self) -> str:
        """`block/row/column`, without what is empty: what footnotes refer to."""
        return "/".join(part for part in (self.block, self.row, self.column) if part)


def table1_cells(study: Published | None = None) -> tuple[Cell, ...]:
    """The six blocks of Table 1, in the study's order."""
    study = study or published()
    return tuple(
        _cell(study, block, row, column, value)
        for block, rows in study.table1.items()
        for row, values in rows.items()
        for column, value in zip(study.columns if len(values) > 1 else ("",), values, strict=True)
    )


def figure13_cells(k: int) -> tuple[Cell, ...]:
    """One matrix of Figure 13: every two layers, the later one's features sought in the earlier."""
    base = dataclasses.replace(_baseline(published()), dataset=_FIGURE13_DATASET, sparsity=k)
    return tuple(
        Cell(
            block=f"figure13_k{k}",
            row=f"{later}in{earlier}",
            column="",
            counted=dataclasses.replace(base, layer=later),
            sought_in=dataclasses.replace(base, layer=earlier),
            published=None,
            choice=CHOICES["figure13"],
        )
        for earlier, later in itertools.combinations(FIGURE13_LAYERS, 2)
    )


def seed_cells_at_baseline(study: Published | None = None) -> tuple[Cell, ...]:
    """The seed cells of the largest dictionary: what the dataset cells are to be set against."""
    study = study or published()
    features = str(study.baseline.dictionary * study.baseline.d_in)
    return tuple(cell for cell in table1_cells(study) if (cell.block, cell.row) == ("seed_42_49", features))


def dataset_cells(study: Published | None = None) -> tuple[Cell, ...]:
    """The dataset block of Table 1."""
    return tuple(cell for cell in table1_cells(study) if cell.block == "dataset")


def table2_rows(study: Published | None = None) -> Iterator[tuple[str, str, str, Cell, Cell]]:
    """For each cell of Table 2: key, row, column, and the cells "large in small" and "small in large"."""
    study = study or published()
    cells = {cell.key: cell for cell in table1_cells(study)}
    for row in study.table2:
        small, large = row.split("-")
        for column in study.columns:
            yield (
                f"table2/{row}/{column}",
                row,
                column,
                cells[f"dictionary_large_in_small/{large}in{small}/{column}"],
                cells[f"dictionary_small_in_large/{small}in{large}/{column}"],
            )


def _cell(study: Published, block: str, row: str, column: str, value: float) -> Cell:
    counted, sought_in = _runs(study, block, row, column)
    return Cell(block, row, column, counted, sought_in, value, CHOICES[block])


def _baseline(study: Published) -> RunFacts:
    base = study.baseline
    return RunFacts(base.architecture, base.dictionary, base.k, base.dataset, base.layer, base.seed)


def _runs(study: Published, block: str, row: str, column: str) -> tuple[RunFacts, RunFacts]:
    """The SAE whose features are counted, and the one they are sought in."""
    base = _baseline(study)
    if column:
        base = dataclasses.replace(base, dataset=column)
    if block.startswith("dictionary"):
        x, y = (int(features) // study.baseline.d_in for features in row.split("in"))
        return dataclasses.replace(base, dictionary=x), dataclasses.replace(base, dictionary=y)
    if block == "seed_42_49":
        base = dataclasses.replace(base, dictionary=int(row) // study.baseline.d_in)
        return base, dataclasses.replace(base, seed=_OTHER_SEED)
    a, b = row.split("-")
    if block == "dataset":
        return dataclasses.replace(base, dataset=b), dataclasses.replace(base, dataset=a)
    if block == "sparsity":
        return dataclasses.replace(base, sparsity=int(b)), dataclasses.replace(base, sparsity=int(a))
    return _with_architecture(base, b), _with_architecture(base, a)


def _with_architecture(base: RunFacts, kind: str) -> RunFacts:
    sparsity = L0_COEFFICIENT if kind == "jumprelu" else base.sparsity
    return dataclasses.replace(base, architecture=kind, sparsity=sparsity)
