"""`task=analyse` on a real small sweep: its numbers are those of the evaluation, and its text is the text."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sae_sweep.saes import load_sae
from tests.conftest import Cli

EVALUATED = 2048


@pytest.mark.slow(reason="four SAEs are trained and compared first")
@pytest.mark.usefixtures("without_figures")
def test_it_agrees_with_the_evaluation_and_shows_the_text(cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "sweep=x", "seed=42,49", "architecture=topk,relu", "fuse=true"]
    assert cli(*words).code == 0
    result = cli(
        "task=analyse", "sweep=x", f"analysis.tokens={EVALUATED}", "analysis.top=3", "analysis.before=2"
    )
    assert result.code == 0, result.err
    assert "What features do: " in result.out
    assert "for 4 SAEs" in result.err
    for run in Path("multirun/x").glob("gpt2-pico_*"):
        metrics = json.loads((run / "metrics.json").read_text())
        features, positions, contexts, strings = (
            pq.read_table(run / "features" / f"{name}.parquet").to_pydict()
            for name in ("firing", "positions", "contexts", "tokens")
        )
        evaluated = pq.read_table(run / "features" / "statistics.parquet").to_pydict()
        assert features["density"] == evaluated["density"]
        assert features["max"] == [
            value or pytest.approx(float("nan"), nan_ok=True) for value in evaluated["max_activation"]
        ]
        counted = positions["tokens"]
        assert sum(counted) == metrics["tokens"]

        def mean(
            name: str, counted: list[int] = counted, values: dict[str, list[float]] = positions
        ) -> float:
            pairs = [(value, n) for value, n in zip(values[name], counted, strict=True) if value == value]
            return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)

        for ours, theirs in (
            ("l0", "l0"),
            ("l1", "l1"),
            ("mse", "mse"),
            ("ce_sae", "ce_sae"),
            ("ce_clean", "ce_clean"),
        ):
            # an LM in bfloat16 rounds reconstructions, whose last bits differ between sparse and dense sums
            exact = 1e-4 if ours == "ce_sae" else 1e-5
            assert mean(ours) == pytest.approx(metrics[theirs], rel=exact), ours

        tops = [row for row in range(len(contexts["kind"])) if contexts["kind"][row] == "top"]
        assert len({contexts["feature"][row] for row in tops}) == metrics["alive"]
        for row in tops:
            at, feature = contexts["at"][row], contexts["feature"][row]
            assert contexts["activations"][row][at] == contexts["activation"][row]
            assert max(contexts["rank"][row] for row in tops) == 2
            if contexts["rank"][row] == 0:
                assert contexts["activation"][row] == features["max"][feature]
        shown = "".join(strings["string"][token] for token in contexts["tokens"][tops[0]])
        assert "word" in shown or "file" in shown or "of" in shown


@pytest.mark.slow(reason="two SAEs are trained first, and the sweep is analysed twice")
@pytest.mark.usefixtures("without_figures")
def test_damaged_and_unfinished_runs_are_left_out(cli: Cli, small: list[str]) -> None:
    words = [*small, "tracking=none", "sweep=x", "seed=42,49"]
    assert cli(*words).code == 0
    one, other = sorted(Path("multirun/x").glob("gpt2-pico_*"))
    weights = one / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = cli("task=analyse", "sweep=x", "analysis.tokens=1_000")
    assert result.code == 1
    assert f"{one.name} is left out: cannot read " in result.err
    assert (other / "features" / "firing.parquet").exists()
    assert not (one / "features" / "firing.parquet").exists()
    (other / "features" / "firing.parquet").unlink()
    (other / "features" / "firing.parquet").mkdir()  # cannot be written
    result = cli("task=analyse", "sweep=x", "analysis.tokens=1_000")
    assert result.code == 1
    assert f"{other.name} is left out: cannot write " in result.err
    assert "What features do" not in result.out
    shutil.rmtree(other)
    result = cli("task=analyse", "sweep=x", "analysis.tokens=1_000")
    assert result.code == 1
    assert "What features do" not in result.out


@pytest.mark.usefixtures("without_figures")
def test_a_changed_text_is_refused(cli: Cli, small: list[str], text_folder: Path) -> None:
    assert cli(*small, "tracking=none", "sweep=x", "seed=42").code == 0
    (text_folder / "00.txt").write_text("something else\n")
    result = cli("task=analyse", "sweep=x")
    assert result.code == 1
    assert "changed after" in result.err


def test_no_finished_run_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "multirun" / "x").mkdir(parents=True)
    (tmp_path / "multirun" / "x" / "plan.json").write_text(json.dumps({"sweep": "x", "runs": []}))
    result = cli("task=analyse", "sweep=x")
    assert result.code == 1
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [["analysis.tokens=0"], ["analysis.top=1e9"], ["analysis.before=-1"]])
def test_absurd_settings_are_refused(cli: Cli, words: list[str]) -> None:
    result = cli("task=analyse", "sweep=x", *words)
    assert result.code == 2
    assert words[0].split("=")[0] in result.err


@pytest.mark.usefixtures("without_figures")
def test_it_needs_no_more_than_the_saes_folder(cli: Cli, small: list[str]) -> None:
    assert cli(*small, "tracking=none", "sweep=x", "seed=42").code == 0
    (run,) = Path("multirun/x").glob("gpt2-pico_*")
    before = load_sae(run / "sae").W_dec.clone()
    shutil.rmtree(run / "features")
    assert cli("task=analyse", "sweep=x", "analysis.tokens=1_000").code == 0
    assert load_sae(run / "sae").W_dec.equal(before)
    assert {file.name for file in (run / "features").iterdir()} == {
        "firing.parquet",
        "positions.parquet",
        "contexts.parquet",
        "tokens.parquet",
    }
