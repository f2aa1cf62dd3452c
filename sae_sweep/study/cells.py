"""The cells of the study's tables: which two SAEs each compares, and in which direction.

What the study leaves open is chosen here, and every cell says so: k = 16, JumpReLU coefficient 0.0018, seed
49 except in the seed rows, and "A-B" counts features of B, as the study's code does.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sae_sweep.study.published import RunFacts, published

L0_COEFFICIENT = 0.0018
"""Coefficient of the JumpReLU cells: the middle one of the three in Table 3."""
FIGURE13_KS = (16, 32)
FIGURE13_LAYERS = range(12)
_FIGURE13_DATASET = "tinystories"
_OTHER_SEED = 42
_A_IN_B = "The study does not say whose features A-B counts: here those of B, as in its code (B found in A)."
_X_IN_Y = "X in Y counts features of X."
CHOICES = {
    "dataset": f"{_A_IN_B} k=16 and seed 49 are the baseline's.",
    "dictionary_large_in_small": f"{_X_IN_Y} k=16 and seed 49 are the baseline's; these rows name neither.",
    "dictionary_small_in_large": f"{_X_IN_Y} k=16 and seed 49 are the baseline's; these rows name neither.",
    "seed_42_49": "The study does not say whose features count: here those of seed 49, found in seed 42.",
    "architecture": f"{_A_IN_B} The study names no sparsity: here k=16 and l0_coefficient=0.0018, seed 49.",
    "sparsity": f"{_A_IN_B} TopK, seed 49.",
    "figure13": "Features of the later layer are counted, and sought in the earlier; TopK, seed 49.",
}
"""Block -> what the study leaves open, and what is chosen here."""


@dataclass(frozen=True)
class Cell:
    """One number of a table: the share of one SAE's features that have a match in another."""

    block: str
    """Block of Table 1, or `figure13_k16`, `figure13_k32`."""
    row: str
    """Row as the study writes it, such as `12288in3072`."""
    column: str
    """Dataset of the column; empty in the dataset block and in Figure 13."""
    counted: RunFacts
    """The SAE whose features are counted: the denominator."""
    sought_in: RunFacts
    """The SAE among whose features a match is sought."""
    published: float | None
    """Published per cent; None where the study shows only a colour."""
    choice: str
    """What the study leaves open here, and what is chosen."""

    @property
    def key(self) -> str:
        """`block/row/column` without empty parts; footnotes refer to it."""
        return "/".join(part for part in (self.block, self.row, self.column) if part)


def table1_cells() -> tuple[Cell, ...]:
    """Cells of the six blocks of Table 1, in the study's order."""
    study = published()
    return tuple(
        _cell(block, row, column, value)
        for block, rows in study.table1.items()
        for row, values in rows.items()
        for column, value in zip(study.columns if len(values) > 1 else ("",), values, strict=True)
    )


def figure13_cells(k: int) -> tuple[Cell, ...]:
    """Cells of one matrix of Figure 13: features of each layer, sought in every earlier layer."""
    base = dataclasses.replace(_baseline(), dataset=_FIGURE13_DATASET, sparsity=k)
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


def seed_cells_at_baseline() -> tuple[Cell, ...]:
    """Seed cells of the largest dictionary, which the dataset cells are compared with."""
    baseline = published().baseline
    features = str(baseline.dictionary * baseline.d_in)
    return tuple(cell for cell in table1_cells() if (cell.block, cell.row) == ("seed_42_49", features))


def dataset_cells() -> tuple[Cell, ...]:
    """Cells of the dataset block of Table 1."""
    return tuple(cell for cell in table1_cells() if cell.block == "dataset")


def table2_rows() -> Iterator[tuple[str, str, str, Cell, Cell]]:
    """For each cell of Table 2: key, row, column, and the cells "large in small" and "small in large"."""
    study = published()
    cells = {cell.key: cell for cell in table1_cells()}
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


def _cell(block: str, row: str, column: str, value: float) -> Cell:
    counted, sought_in = _runs(block, row, column)
    return Cell(block, row, column, counted, sought_in, value, CHOICES[block])


def _baseline() -> RunFacts:
    base = published().baseline
    return RunFacts(base.architecture, base.dictionary, base.k, base.dataset, base.layer, base.seed)


def _runs(block: str, row: str, column: str) -> tuple[RunFacts, RunFacts]:
    """The SAE whose features are counted, and the one they are sought in."""
    base, d_in = _baseline(), published().baseline.d_in
    if column:
        base = dataclasses.replace(base, dataset=column)
    if block.startswith("dictionary"):
        x, y = (int(features) // d_in for features in row.split("in"))
        return dataclasses.replace(base, dictionary=x), dataclasses.replace(base, dictionary=y)
    if block == "seed_42_49":
        base = dataclasses.replace(base, dictionary=int(row) // d_in)
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
