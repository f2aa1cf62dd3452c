"""What is shown of a difference between two datasets: which SAEs, which part of a context, in which width."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sae_sweep.analysis.dataset_diff import Difference
from sae_sweep.report.diff_files import Compared, chosen, diff_figure, diff_text

WORDS = ["".join(chr(ord("a") + number) * 9) + " " for number in range(20)]


def compared(run: str, trained_on: str = "", documents: tuple[int, int] = (21, 25)) -> Compared:
    """Feature 0 fires in all documents of a and none of b, feature 1 the other way round."""
    share = np.array([1.0, 0.0])
    of_each = dict.fromkeys(field.name for field in fields(Difference))
    found = Difference(**of_each | {  # type: ignore[arg-type]
        "documents_a": share, "documents_b": 1 - share, "tokens_a": share, "tokens_b": 1 - share,
        **dict.fromkeys(("documents", "documents_low", "documents_high", "tokens"), 2 * share - 1),
        **dict.fromkeys(("documents_q", "documents_p", "tokens_low", "tokens_high"), 0 * share),
    })  # fmt: skip
    contexts = SimpleNamespace(
        features=torch.tensor([0, 1]),
        tokens=torch.arange(20).expand(2, 20),
        activations=torch.ones(2, 20),
        ranks=torch.zeros(2, dtype=torch.int64),
    )
    a, b = (SimpleNamespace(tokens=np.ones(n), contexts=contexts, before=12) for n in documents)
    return Compared(run, a, b, found, WORDS, run, trained_on)  # type: ignore[arg-type]


def test_saes_of_each_training_dataset_are_shown_in_turn() -> None:
    names = [f"{text}{seed}" for text in "ab" for seed in (1, 2, 3)]
    assert [one.run for one in chosen([compared(name, name[0]) for name in names])] == [
        "a1",
        "a2",
        "b1",
        "b2",
    ]
    many = [compared(f"{text}{seed}", text) for text in "abcdef" for seed in (1, 2)]
    assert [one.run for one in chosen(many)] == [f"{text}1" for text in "abcdef"]
    assert len(chosen([compared(str(number), str(number)) for number in range(30)])) == 8


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_context_is_cut_around_its_token_and_sides_have_heads(width: int) -> None:
    lines = diff_text(("docs", "code"), compared("one"), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "More documents of docs (here) than of code (there):" in lines
    assert "More documents of code (here) than of docs (there):" in lines
    rows = [line for line in lines if "«" in line]
    assert len(rows) == 2
    for row in rows:
        assert "«mmmmmmmmm »" in row  # the token, whole
        assert row.split()[1:3] == ["100", "0"]
        before, _, after = row.partition("«mmmmmmmmm »")
        assert before.endswith("l ")
        assert after.startswith("n")
        assert "…" in before
        assert after.endswith("…")


def test_panels_are_named_by_what_tells_the_saes_apart_and_axes_count_documents() -> None:
    figure = diff_figure(("docs", "code"), [compared("stdlib seed 1"), compared("stdlib seed 2")]).figure
    assert [axes.get_title() for axes in figure.axes] == ["stdlib seed 1", "stdlib seed 2"]
    assert figure.get_supxlabel() == "documents of code (%; n = 25)"
    several = [compared("1", documents=(20, 25)), compared("2", documents=(22, 25))]
    assert (
        diff_figure(("docs", "code"), several).figure.get_supylabel() == "documents of docs (%; n = 20 to 22)"
    )
