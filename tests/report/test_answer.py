import dataclasses
from pathlib import Path

import pytest

from sae_sweep.analysis import SEVERAL, Comparison, KeyContrast, KeySummary
from sae_sweep.config import SaeSweepError
from sae_sweep.report.answer import Answer, answer, read_answer, write_answer


def summary(key: str, ratio: float, *, undertrained: int = 0, inherited: int = 0) -> KeySummary:
    return KeySummary(
        key=key,
        values=("a", "b"),
        pairs=2,
        undertrained=undertrained,
        mixed=0,
        ratio=ratio,
        low=ratio - 0.01,
        high=ratio + 0.01,
        lowest=ratio,
        highest=ratio,
        live_ratio=None,
        mmcs=0.5,
        histogram=(),
        inherited=inherited,
    )


def found(*summaries: KeySummary, apart: bool = True) -> Answer:
    known = [one for one in summaries if one.key != SEVERAL and one.trained]
    contrasts = [
        KeyContrast(b.key, a.key, b.ratio - a.ratio, 0.01 if apart else -0.01, 0.2)
        for at, a in enumerate(known)
        for b in known[at + 1 :]
    ]
    return Answer(("x", "y"), 0.7, 0.1, (0.0, 0.0), summaries, tuple(contrasts))


def test_the_key_that_moves_features_most_is_named_first() -> None:
    assert found(summary("dataset", 0.142), summary("k", 0.2), summary("seed", 0.25)).sentence == (
        "The dataset moves the feature set most: 14.2% [13.2, 15.2] of the features are found again when "
        "only the dataset differs, 20.0% [19.0, 21.0] when only the k does and 25.0% [24.0, 26.0] when only "
        "the seed does."
    )


def test_keys_whose_difference_may_be_chance_are_not_ranked() -> None:
    tied = found(summary("dataset", 0.24), summary("seed", 0.25), apart=False).sentence
    assert tied.startswith("The keys dataset and seed cannot be told apart: 24.0%")


def test_one_key_is_no_ranking() -> None:
    assert found(summary("seed", 0.25), summary(SEVERAL, 0.1)).sentence == (
        "25.0% [24.0, 26.0] of the features are found again when only the seed differs."
    )


def test_nothing_is_concluded_from_undertrained_runs() -> None:
    lost = summary("dataset", 0.9, undertrained=2)
    alone = found(lost).sentence
    assert alone.startswith("Nothing can be concluded about dataset: the runs are undertrained")
    assert "%" not in alone
    beside = found(summary("seed", 0.25), lost).sentence
    assert beside.endswith(" Nothing is concluded about dataset: undertrained.")
    assert "90" not in beside


@pytest.mark.parametrize(
    ("inherited", "why", "raised"),
    [(0, "undertrained", True), (1, "undertrained or fine-tuned", True), (2, "fine-tuned", False)],
)
def test_it_says_why_nothing_is_concluded(inherited: int, why: str, raised: bool) -> None:
    lost = summary("dataset", 0.9, undertrained=2, inherited=inherited)
    alone = found(lost).sentence
    assert f"the runs are {why}, and may match only because of what they started from." in alone
    assert ("Raise tokens" in alone) == raised
    assert found(summary("seed", 0.25), lost).sentence.endswith(f"about dataset: {why}.")


@pytest.mark.parametrize(
    ("one", "words"), [(found(), "no two finished"), (found(summary(SEVERAL, 0.1)), "more than one key")]
)
def test_without_a_key_there_is_no_answer(one: Answer, words: str) -> None:
    assert words in one.sentence


def test_what_is_read_is_what_was_found(comparison: Comparison, tmp_path: Path) -> None:
    one = answer(comparison)
    path = write_answer(tmp_path / "answer.json", one)
    assert read_answer(path) == one
    assert one.summaries
    path.write_text(path.read_text().replace(one.summaries[0].key, "other"))
    with pytest.raises(SaeSweepError, match=r"answer\.json: .*checksum; compare the SAEs again"):
        read_answer(path)
    assert read_answer(write_answer(path, dataclasses.replace(one, summaries=()))).summaries == ()
