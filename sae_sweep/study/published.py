"""The study's published results, read from the data file that comes with the package."""

import functools
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

STUDY_FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class RunFacts:
    """What tells an SAE of the study from the others, in the study's own terms."""

    architecture: str
    """topk, batchtopk or jumprelu."""
    dictionary: int
    """Expansion factor: features / d_in."""
    sparsity: float
    """k, or for JumpReLU the coefficient of L0."""
    dataset: str
    """owt, tinystories, redpajama or pile."""
    layer: int
    seed: int

    def __str__(self) -> str:
        """For example `topk x16 k=16, owt, layer 8, seed 49`."""
        name = "l0_coefficient" if self.architecture == "jumprelu" else "k"
        return (
            f"{self.architecture} x{self.dictionary} {name}={self.sparsity:g}, {self.dataset}, "
            f"layer {self.layer}, seed {self.seed}"
        )


@dataclass(frozen=True)
class Baseline:
    """The setting from which the study's rows depart."""

    d_in: int
    """Width of the residual stream; features = dictionary x d_in."""
    layer: int
    architecture: str
    k: int
    dictionary: int
    dataset: str
    seed: int


@dataclass(frozen=True, order=True)
class Footnote:
    """Something known to be wrong or unclear about published cells."""

    mark: str
    """One letter."""
    cells: tuple[str, ...]
    """Patterns of the keys of the cells it concerns."""
    text: str

    def concerns(self, key: str) -> bool:
        """Whether it belongs to the cell `block/row/column`."""
        return any(fnmatchcase(key, pattern) for pattern in self.cells)


@dataclass(frozen=True)
class Published:
    """All of it."""

    title: str
    date: date
    threshold: float
    """A feature is matched when its best decoder cosine is strictly above this."""
    baseline: Baseline
    columns: tuple[str, ...]
    """Datasets of the two columns of Tables 1 and 2."""
    table1: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Block -> row -> per cent, one value a column; the dataset block has a single one."""
    table2: Mapping[str, tuple[float, ...]]
    """Row -> features as printed, one value a column."""
    table3: tuple[tuple[RunFacts, ...], ...]
    """For each printed row the SAEs it lists."""
    inferred: tuple[RunFacts, ...]
    """SAEs that Table 1 needs and Table 3 does not list."""
    footnotes: tuple[Footnote, ...]

    def footnotes_of(self, key: str) -> tuple[Footnote, ...]:
        """Those of the cell with this key."""
        return tuple(note for note in self.footnotes if note.concerns(key))

    @property
    def saes(self) -> tuple[RunFacts, ...]:
        """Every SAE of the study once: what Table 3 lists, then what is inferred."""
        listed = itertools.chain.from_iterable(self.table3)
        return tuple(dict.fromkeys((*listed, *self.inferred)))


@functools.cache
def published() -> Published:
    """The study's results; read once."""
    raw = tomllib.loads(STUDY_FILE.read_text(encoding="utf-8"))
    blocks = dict(raw["table1"])
    return Published(
        title=raw["source"]["title"],
        date=raw["source"]["date"],
        threshold=raw["matching"]["threshold"],
        baseline=Baseline(**raw["baseline"]),
        columns=tuple(blocks.pop("columns")),
        table1={block: _values(rows) for block, rows in blocks.items()},
        table2=_values(raw["table2"]),
        table3=tuple(_product(row) for row in raw["table3"]),
        inferred=tuple(itertools.chain.from_iterable(_product(row) for row in raw["inferred"])),
        footnotes=tuple(
            Footnote(note["mark"], tuple(note["cells"]), note["text"]) for note in raw["footnotes"]
        ),
    )


def _values(rows: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {row: tuple(value) if isinstance(value, list) else (value,) for row, value in rows.items()}


def _product(row: Mapping[str, Any]) -> tuple[RunFacts, ...]:
    sparsities: Sequence[float] = row["k"] if "k" in row else row["l0_coefficient"]
    points = itertools.product(row["seed"], row["dictionary"], sparsities, row["layer"])
    return tuple(
        RunFacts(row["architecture"], dictionary, sparsity, row["dataset"], layer, seed)
        for seed, dictionary, sparsity, layer in points
    )
