"""Evaluations that `task=transfer` keeps: which it takes again, and which it makes anew."""

import errno
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from sae_sweep.analysis import Evaluation
from sae_sweep.config import RunConfig, TopKConfig
from sae_sweep.launch.finish import Evaluator
from sae_sweep.saes import SAE, build_sae, save_sae
from sae_sweep.store import PlannedRun, SweepFolder, disk_error
from sae_sweep.tasks import transfer as transfer_task
from tests.conftest import Cli
from tests.tasks.conftest import alone


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.usefixtures("without_figures")
def test_what_was_evaluated_is_kept_until_it_changes(
    cli: Cli, two_texts: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    told: list[str] = []
    opened: list[int] = []

    class Counting(Evaluator):
        def __init__(self, *arguments: Any) -> None:
            opened.append(1)
            super().__init__(*arguments)

        def evaluate(self, sae: SAE, config: RunConfig) -> Evaluation:
            done.append(f"{config.dataset.name} on {Path(self._source.label).name}")
            if len(done) == 3:
                signal.raise_signal(signal.SIGTERM)
            return super().evaluate(sae, config)

    def again() -> tuple[list[str], dict[tuple[str, str], float]]:
        done.clear()
        opened.clear()
        result = cli("task=transfer", "sweep=mine", "tracking=none")
        assert result.code == 0
        told.append(result.err)
        rows = parquet.read_table(folder / "transfer.parquet").to_pylist()
        return [*done], {(row["run"], row["read"]): row["explained_variance"] for row in rows}

    monkeypatch.setattr(transfer_task, "Evaluator", Counting)
    prose, code = two_texts
    folder = SweepFolder(prose.folder.root.parent).transfer
    stopped = cli("task=transfer", "sweep=mine", "tracking=none")
    assert stopped.code == 128 + signal.SIGTERM
    assert "launch the same command again to resume\n" in stopped.err
    assert "cannot read" not in stopped.err
    missing, found = again()
    assert missing == ["prose on code", "code on code"]
    pairs = [(run, text) for run in two_texts for text in two_texts]
    expected = {(run.name, text.name): alone(run, text)["explained_variance"] for run, text in pairs}
    assert found == pytest.approx(expected)
    tables = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    assert len(tables) >= 2
    missing, _ = again()
    assert missing == opened == []
    assert {path: path.read_bytes() for path in folder.glob("*.parquet")} == tables
    other = build_sae(TopKConfig(k=4), 128, 128, seed=9, numerics="modern")
    save_sae(other, prose.folder.sae, metadata={"provenance": {"run_id": prose.run_id}})
    missing, changed = again()
    assert missing == ["prose on prose", "prose on code"]
    assert changed["prose", "code"] == pytest.approx(alone(prose, code)["explained_variance"])
    assert changed["prose", "code"] != found["prose", "code"]
    assert changed["code", "code"] == found["code", "code"]
    files = sorted((folder / "evaluations").iterdir())
    assert len(files) == 4  # those of the SAE that is gone are gone
    foreign = pyarrow.table({"density": [0.5]}).replace_schema_metadata({"metrics": "{}"})
    for damage in (_cut, partial(parquet.write_table, foreign)):
        damage(files[0])
        missing, mended = again()
        assert len(missing) == 1
        assert mended == changed
        assert f"cannot read {files[0].resolve()}: its checksum differs; it is evaluated again" in told[-1]
    result = cli("task=transfer", "sweep=mine", "tracking=none", "device=cuda")
    assert (result.code, "device=cuda: this machine has cpu only" in result.err) == (1, True)


def test_each_thing_that_decides_an_evaluation_makes_it_anew(
    two_texts: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, of_prose = two_texts[0].config, two_texts[0].config.dataset

    def digest(
        config: RunConfig = own, sae: str = "sae", dataset: Any = of_prose, content: str = "mt"
    ) -> str:
        run = replace(two_texts[0], config=config)
        subject = transfer_task._Subject(None, run, {}, "prose", False, sae)  # type: ignore[arg-type]
        return subject.decided_by(transfer_task._Text("prose", dataset, run), list(content))

    digests = [
        digest(),
        digest(sae="other"),
        digest(content="xt"),
        digest(content="mx"),
        digest(dataset=replace(of_prose, held_out_every=3)),  # type: ignore[call-arg]
        digest(replace(own, layer=3)),
        digest(replace(own, packing=replace(own.packing, seq_len=64))),
        digest(replace(own, evaluation=replace(own.evaluation, tokens=600))),
        digest(replace(own, evaluation=replace(own.evaluation, dense=0.5))),
    ]
    assert digest(replace(own, seed=7)) == digests[0]
    monkeypatch.setattr(transfer_task, "_VERSION", 0)
    assert len({*digests, digest()}) == 10


@pytest.mark.usefixtures("without_figures")
def test_what_is_left_out_for_a_while_is_not_evaluated_again(cli: Cli, two_texts: list[PlannedRun]) -> None:
    prose, _ = two_texts
    assert cli("task=transfer", "sweep=mine", "tracking=none").code == 0
    folder = SweepFolder(prose.folder.root.parent).transfer / "evaluations"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    prose.folder.sae.rename("lost")
    assert cli("task=transfer", "sweep=mine", "tracking=none").code == 1
    Path("lost").rename(prose.folder.sae)
    assert cli("task=transfer", "sweep=mine", "tracking=none").code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_full_disk_ends_the_command(
    cli: Cli, two_texts: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise disk_error(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(transfer_task, "write_kept", full)
    result = cli("task=transfer", "sweep=mine", "tracking=none")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("sae_sweep: no disk space left to write ")
    assert not SweepFolder(two_texts[0].folder.root.parent).transfer.exists()
