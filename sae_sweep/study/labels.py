"""Names of settings, datasets and cells in the study's tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sae_sweep.study.cells import Cell

NAMES = {
    "owt": "OpenWebText",
    "tinystories": "TinyStories",
    "redpajama": "RedPajama",
    "pile": "Pile",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
}
BLOCKS = {
    "dataset": "dataset",
    "dictionary_large_in_small": "dictionary size, large in small",
    "dictionary_small_in_large": "dictionary size, small in large",
    "seed_42_49": "seed, 42 and 49",
    "architecture": "architecture",
    "sparsity": "sparsity",
}
UNDERTRAINED = "†"
MIXED = "‡"
_SHORTENED = {"OpenWebText": "OWT"}


class Marked(Protocol):
    """A cell, row or answer with marks, or a set of them, which counts its marked ones."""

    @property
    def undertrained(self) -> int: ...

    @property
    def mixed(self) -> int: ...


def marks(result: Marked, before: str = "") -> str:
    """The marks of a cell, with `before` in front if there are any."""
    found = (UNDERTRAINED if result.undertrained else "") + (MIXED if result.mixed else "")
    return found and before + found


@dataclass(frozen=True)
class StudySetup:
    """What a sweep used in place of the study's model and data; stands above every table."""

    sweep: str
    starts: str = ""
    """Which of its runs: `shared starts` or `own starts`; empty for all."""
    models: Sequence[str] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """The study's dataset -> the one read in its place."""
    l0_scale: float = 1.0
    """Factor on the study's JumpReLU coefficients."""
    tokens: Sequence[int] = ()
    """Budgets of the runs, in SAE inputs."""
    left_out: Sequence[str] = ()
    """One line per finished run that cannot be compared with the others."""

    def sentence(self) -> str:
        """All of it in one sentence."""
        parts = [f"Sweep {self.sweep}" + (f", {self.starts}" if self.starts else "")]
        if self.models:
            parts.append(f"model {', '.join(self.models)}")
        if self.tokens:
            parts.append(f"{_range(self.tokens)} tokens per run")
        if self.stand_ins:
            read = ", ".join(f"{name(role)} is {text}" for role, text in self.stand_ins.items())
            parts.append(f"in place of the study's text: {read}")
        if self.l0_scale != 1:
            parts.append(f"JumpReLU coefficients are the study's times {self.l0_scale:g}")
        return "; ".join(parts) + "."

    def text(self, role: str) -> str:
        """A dataset of the study, with what was read in its place."""
        return f"{name(role)} (here {self.stand_ins[role]})" if role in self.stand_ins else name(role)


def name(word: str) -> str:
    """A dataset or architecture as people write it."""
    return NAMES.get(word, word)


def row_label(cell: Cell) -> str:
    """The two sides of a cell of Table 1: `x16 in x4`, `OpenWebText - Pile`, `k 16 - 64`."""
    if cell.block.startswith("dictionary"):
        return f"x{cell.counted.dictionary} in x{cell.sought_in.dictionary}"
    if cell.block == "seed_42_49":
        return f"x{cell.counted.dictionary}"
    a, b = cell.row.split("-")
    if cell.block == "sparsity":
        return f"k {a} - {b}"
    return f"{name(a)} - {name(b)}"


def short(label: str) -> str:
    """The label with long names shortened, for figures."""
    for long, cut in _SHORTENED.items():
        label = label.replace(long, cut)
    return label


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
