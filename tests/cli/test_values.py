"""Numbers as a user types them: a wrong one ends in one line that names key, value and bound."""

from pathlib import Path

import pytest

from tests.conftest import Cli

DIGITS = "a whole number, written in digits"
ABOVE_0 = "above 0 (in float32: at least 1.2e-38)"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("dictionary=1e23", f"dictionary=1e23: must be {DIGITS}"),
        ("tokens=1.5", f"tokens=1.5: must be {DIGITS}"),
        ("tokens=1e-8", f"tokens=1e-8: must be {DIGITS}"),
        ("activations.buffer_tokens=inf", f"activations.buffer_tokens=inf: must be {DIGITS}"),
        ("seed=1e4,2.5e0", f"seed=2.5: must be {DIGITS}"),
        ("k=-1e1", "k=-10: must be at least 1"),
        ("tracking.log_every=true", f"tracking.log_every=true: must be {DIGITS}"),
        ("layer=null", f"layer=null: must be {DIGITS}"),
        ("tokens=[1,2]", f"tokens=[1,2]: must be {DIGITS}"),
        ("tokens=${times:1e20,1e10}", f"tokens=1e+30: must be {DIGITS}"),
        ("optimizer.lr=null", "optimizer.lr=null: must be a number"),
        ("optimizer.lr=true", "optimizer.lr=true: must be a number"),
        ("optimizer.eps=1e999", "optimizer.eps=inf: must be a finite number"),
        ("optimizer.beta1=nan", "optimizer.beta1=nan: must be a finite number"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0: must be below 1 (in float32: at most 0.9999999)"),
        (
            "optimizer.clip_norm=-1",
            "optimizer.clip_norm=-1.0: must be above 0 (in float32: at least 1.2e-38)",
        ),
        (
            "seed=18446744073709551616",
            "seed=18446744073709551616: must be at most 4294967295 "
            "(torch uses 32 bits: larger seeds repeat smaller ones)",
        ),
        (
            f"dictionary=1{'0' * 23}",
            f"dictionary=1{'0' * 23}: must be at most 2147483647 (the largest index of 32 bits)",
        ),
        ("plan.tflops=1e-300", "plan.tflops=1e-300: must be at least 1e-06"),
        ("launcher.slurm.poll_s=1e300", "launcher.slurm.poll_s=1e+300: must be at most 86400 (a day)"),
        (
            "launcher.workers=9223372036854775808",
            "launcher.workers=9223372036854775808: must be at most 4194304 (the processes of one machine)",
        ),
        (f"k={'x' * 5000}", f"k={'x' * 57}...: must be {DIGITS}"),
        (f"seed={'9' * 5000}", f"seed={'9' * 52}...: too many digits"),
        ("model=null", "model=null: not one of gpt2-pico, gpt2-small, smollm2-135m, synthetic"),
        (f"seed={'[' * 3000}{']' * 3000}", f"seed={'[' * 52}...: nested too deeply"),
        (
            f"optimizer.lr={'9' * 400}",
            f"optimizer.lr={'9' * 57}...: must be at most 1e30 (float32 overflows soon after)",
        ),
    ],
)
def test_a_wrong_number_is_one_line(cli: Cli, word: str, line: str) -> None:
    result = cli("task=plan", "plan.tflops=1", word) if "tflops" not in word else cli("task=plan", word)
    assert (result.code, result.err.splitlines()) == (2, [f"sae_sweep: {line}"])
    assert not any(Path.cwd().iterdir())


def test_all_wrong_numbers_of_a_run_and_its_command_are_said_at_once(cli: Cli) -> None:
    """With what contradicts each other; once, however many runs have them."""
    words = (
        "seed=1,-1",
        "optimizer.clip_norm=-1",
        "layer=13",
        "launcher.workers=0",
        "matching.threshold=nan",
    )
    result = cli("k=16,99999", *words)
    assert result.code == 2
    assert sorted(result.err.splitlines()) == [
        "sae_sweep: k=99999 is above d_sae=12288: lower k or raise dictionary",
        "sae_sweep: launcher.workers=0: must be at least 1",
        "sae_sweep: layer=13: gpt2-small has layers 0 to 11",
        "sae_sweep: matching.threshold=nan: must be a finite number",
        f"sae_sweep: optimizer.clip_norm=-1.0: must be {ABOVE_0}",
        "sae_sweep: seed=-1: must be at least 0",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=range(1,1000000)"], "seed=range(1,1000000): the range has 999999 values, over 100000"),
        (["k=range(1,inf)"], "k=range(1,inf): the range has no end"),
        (["k=range(nan,5)"], "k=range(nan,5): the range has no end"),
        (["seed=range(1,5,0)"], "seed=range(1,5,0): the range has no end"),
        (["seed=range(5,1)"], "seed=range(5,1): the range has no value"),
        (
            ["seed=range(1,1002)", "k=range(1,102)"],
            "the lists and grids multiply to 101101 runs, over 100000: narrow them",
        ),
        (
            [
                "common={seed: [1,2,3]}",
                "grids=[{k: [1,2]},{zip: {k: [3,4], layer: [1,2]}}]",
                "data_seed=range(0,9999)",
            ],
            "the lists and grids multiply to 119988 runs, over 100000: narrow them",
        ),
    ],
)
def test_more_runs_than_can_be_composed_are_refused(cli: Cli, words: list[str], line: str) -> None:
    result = cli(*words)
    assert (result.code, result.err.splitlines()) == (2, [f"sae_sweep: {line}"])


def test_numbers_out_of_bounds_are_said_beside_mistyped_ones(cli: Cli) -> None:
    """A mistyped value keeps the command from being composed; the bounds of the others are known without."""
    result = cli("seed=1,x,18446744073709551616", "optimizer.beta1=nan", "sed=3")
    assert result.code == 2
    assert [line.removeprefix("sae_sweep: ").split(": ")[0] for line in result.err.splitlines()] == [
        "seed=x",
        "unknown key sed (did you mean seed or sae?)",
        "seed=18446744073709551616",
        "optimizer.beta1=nan",
    ]
