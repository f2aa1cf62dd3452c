"""The keys that the study adds to a command."""

from collections.abc import Callable

import pytest

from sae_sweep.plan import Plan
from tests.conftest import Cli


def test_the_published_budget_is_for_what_stands_for_openwebtext(planned: Callable[..., Plan]) -> None:
    def tokens(*words: str) -> dict[str, int]:
        runs = planned("dataset=owt,pile", "tokens=4096", *words).runs
        return {run.config.dataset.name: run.config.tokens for run in runs}

    assert tokens() == tokens("budget=equal") == {"owt": 4096, "pile": 4096}
    assert tokens("budget=published") == {"owt": 10**9, "pile": 4096}
    assert tokens("budget=published", "study.datasets.owt=pile") == {"owt": 4096, "pile": 10**9}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=large", "layer=99"], "budget=large: not one of equal, published"),
        (["budget=large", "layer=99"], "layer=99: gpt2-small has layers 0 to 11"),
        (["budget=equal,published"], "budget cannot be swept"),
        (["study.l0_scale=1,2"], "study.l0_scale cannot be swept"),
        (["study.datasets.tiny=pile"], "study.datasets: tiny is not one of owt, tinystories"),
    ],
)
def test_what_belongs_to_the_sweep_as_a_whole_is_checked(cli: Cli, words: list[str], message: str) -> None:
    result = cli(*words)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
