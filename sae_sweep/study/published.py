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
    """Settings that identify an SAE of the study, in the study's own terms."""

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
    """Settings of the study's baseline SAE; each row of its tables changes some of them."""

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
    """A footnote about published cells that are wrong or unclear."""

    mark: str
    """One letter."""
    cells: tuple[str, ...]
    """Patterns of cell keys, such as `dataset/*`."""
    text: str

    def concerns(self, key: str) -> bool:
        """Whether this footnote is about the cell `block/row/column`."""
        return any(fnmatchcase(key, pattern) for pattern in self.cells)


@dataclass(frozen=True)
class Published:
    """All published results, with footnotes."""

    title: str
    date: date
    threshold: float
    """A feature is matched when its best decoder cosine is strictly above this."""
    baseline: Baseline
    columns: tuple[str, ...]
    """Datasets of the two columns of Tables 1 and 2."""
    table1: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Block -> row -> per cent, one value per column; the dataset block has one column."""
    table2: Mapping[str, tuple[float, ...]]
    """Row -> features as printed, one value per column."""
    table3: tuple[tuple[RunFacts, ...], ...]
    """SAEs of each printed row."""
    inferred: tuple[RunFacts, ...]
    """SAEs that Table 1 needs and Table 3 does not list."""
    footnotes: tuple[Footnote, ...]

    def footnotes_of(self, key: str) -> tuple[Footnote, ...]:
        """Footnotes of the cell with this key."""
        return tuple(note for note in self.footnotes if note.concerns(key))

    @property
    def saes(self) -> tuple[RunFacts, ...]:
        """Every SAE of the study once: those in Table 3, then the inferred ones."""
        listed = itertools.chain.from_iterable(self.table3)
        return tuple(dict.fromkeys((*listed, *self.inferred)))


@functools.cache
def published() -> Published:
    """The study's results, read once per process."""
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
    """SAEs of a row of Table 3: the product of its lists."""
    sparsities: Sequence[float] = row["k"] if "k" in row else row["l0_coefficient"]
    settings = itertools.product(row["seed"], row["dictionary"], sparsities, row["layer"])
    return tuple(
        RunFacts(row["architecture"], dictionary, sparsity, row["dataset"], layer, seed)
        for seed, dictionary, sparsity, layer in settings
    )
