"""`bench/features.py` at a tiny size: what it records, and what it refuses."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Result

BENCH = Path(__file__).parents[2] / "bench"


class RandomBatches(list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Residuals without a language model; the first token of a sequence is special."""

    seq_len = 16

    def __init__(self, batches: int) -> None:
        generator = torch.Generator().manual_seed(0)
        keep = torch.ones(4, self.seq_len, dtype=torch.bool)
        keep[:, 0] = False
        super().__init__(
            (
                torch.randint(1, 50, keep.shape, generator=generator),
                keep,
                torch.randn(*keep.shape, 24, generator=generator) + 1,
            )
            for _ in range(batches)
        )


@pytest.mark.slow(reason="the script imports the libraries of language models first")
@torch.no_grad()
def test_a_record_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    bench = runpy.run_path(str(BENCH / "features.py"), run_name="bench")
    batches = RandomBatches(5)
    sae = bench["sae_of_residuals"](batches, 90, 4)
    record = bench["measure"](batches, sae, 4, 50)
    assert (record["k"], record["d_in"], record["d_sae"], record["tokens"]) == (4, 24, 90, 300)
    assert record["l0"] == pytest.approx(4, rel=0.05)
    assert 0 < record["alive"] <= 90
    assert 4 / 90 < record["densest"] < 1
    assert record["codes_tokens"] == 300
    assert record["quantiles_exact"]
    assert record["ratio_to_encode"] == record["pass_seconds"] / record["encode_seconds"]
    assert record["ratio_with_results"] > record["ratio_to_encode"] > 1
    assert record["peak_mib"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "argument --k: 0 is not positive"),
        (["--tokens", "none"], "argument --tokens: invalid positive value: 'none'"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., Result], words: list[str], message: str) -> None:
    done = refused("features.py", *words)
    assert done.code != 0
    assert done.err.splitlines()[-1].endswith(message)
