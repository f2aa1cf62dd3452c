"""`task=analyse` analyses as many SAEs together as fit into memory."""

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_sweep.analysis.features import Kept, Text, memory_needed
from sae_sweep.config import SaeSweepError
from sae_sweep.tasks import analyse

TEXT = Text(np.zeros((10, 128), np.int32), np.ones((10, 128), bool))
D_MODEL, EXPANSION = 64, 4
TABLES = memory_needed(D_MODEL * EXPANSION, TEXT, Kept(), 1).tables + 8 * D_MODEL * EXPANSION * D_MODEL


@pytest.mark.parametrize(
    ("free", "sizes"),
    [
        ([2**40], [5]),
        ([5 * TABLES], [1, 1, 1, 1, 1]),  # the text is kept on the CPU, too
        ([5 * TABLES, 2**40], [2, 2, 1]),  # a GPU
        ([2**40, 1], [1, 1, 1, 1, 1]),
    ],
)
def test_saes_are_analysed_together_as_far_as_they_fit(
    monkeypatch: pytest.MonkeyPatch, free: list[int], sizes: list[int]
) -> None:
    assert [len(part) for part in parts(monkeypatch, free, {})] == sizes


def test_an_sae_whose_tables_do_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: dict[str, SaeSweepError] = {}
    assert parts(monkeypatch, [TABLES - 1, 2**40], left_out) == [[]]
    assert list(left_out) == ["0", "1", "2", "3", "4"]
    assert "lower analysis.top, sample, before or after" in str(left_out["0"])


def test_a_part_is_let_go_before_the_memory_of_the_next_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def analyse_features(subjects: dict[str, Any], *_: Any, **__: Any) -> dict[str, Held]:
        found = {name: Held() for name in subjects}
        held.extend(map(weakref.ref, found.values()))
        return found

    def free_bytes(_: Any) -> list[int]:
        assert [one() for one in held] == [None] * len(held)
        return [2 * TABLES]

    monkeypatch.setattr(analyse, "_reading", lambda *_: reading())
    monkeypatch.setattr(analyse, "free_bytes", free_bytes)
    monkeypatch.setattr(analyse, "analyse_features", analyse_features)
    monkeypatch.setattr(analyse, "_subjects", lambda part, *_: [(one.name, one) for one in part])
    monkeypatch.setattr(analyse, "_write", lambda one, *_: one.name)
    lm: Any = SimpleNamespace(name="lm")
    assert analyse._analyse_group(lm, None, saes(), {}) == ["0", "1", "2", "3", "4"]  # type: ignore[arg-type]
    assert len(held) == 5


def test_the_unembedding_is_checked_on_little_text_however_long_its_sequences_are() -> None:
    shapes = []
    lm: Any = SimpleNamespace(unembedding=lambda tokens: shapes.append(tuple(tokens.shape)))
    for length in (8, 4096):
        analyse._unembedding(lm, np.zeros((50, length), np.int32))
    assert shapes == [(2, 8), (2, 128)]


def reading(**changed: Any) -> Any:
    lm = SimpleNamespace(device="a device", d_model=D_MODEL)
    fields = {"lm": lm, "text": TEXT, "kept": Kept(), "changes": {}, "strings": []}
    return SimpleNamespace(**fields | changed)


def saes() -> Any:
    config = SimpleNamespace(dictionary=EXPANSION)
    return [SimpleNamespace(name=str(number), run=True, config=config) for number in range(5)]


def parts(monkeypatch: pytest.MonkeyPatch, free: list[int], left_out: dict[str, SaeSweepError]) -> list[Any]:
    monkeypatch.setattr(analyse, "free_bytes", lambda device: free)
    return list(analyse._parts(saes(), reading(), left_out))
