"""What is counted of the language model's passes."""

from contextlib import suppress
from pathlib import Path

import pytest

from sae_sweep.launch.ledger import Ledger, Reading, ledger_file, read_ledgers, tell
from sae_sweep.plan.plan import Plan
from sae_sweep.store import RunFolder


class Lm:
    tokens_read = 1000
    seconds = 9.0

    def read(self, tokens: int) -> None:
        self.tokens_read += tokens
        self.seconds += tokens / 100


def test_a_run_is_charged_what_was_read_until_it_ended(plan: Plan) -> None:
    lm, ledger = Lm(), Ledger()
    with ledger.training(lm, plan.runs) as ended:
        lm.read(100)
        ended(plan.runs[0].name)
        lm.read(50)
        ended(plan.runs[1].name)
    first, second = (run.name for run in plan.runs)
    assert ledger.total == Reading({first: 100, second: 150}, 1, 150, 1.5)
    with ledger.training(lm, plan.runs[:1]):  # in halves, say
        lm.read(10)
    assert ledger.total == Reading({first: 110, second: 150}, 2, 160, pytest.approx(1.6))


def test_what_a_job_read_before_it_was_stopped_counts(plan: Plan) -> None:
    file = ledger_file(plan.folder, 3)
    lm, ledger = Lm(), Ledger(file)
    with suppress(KeyboardInterrupt), ledger.training(lm, plan.runs):
        lm.read(100)
        raise KeyboardInterrupt
    names = [run.name for run in plan.runs]
    assert read_ledgers(plan.folder, [3, 4]) == Reading(dict.fromkeys(names, 100), 1, 100, 1.0)
    again = Ledger(file)  # requeued
    with again.training(lm, plan.runs) as ended:
        lm.read(20)
        ended(plan.runs[0].name)
        assert read_ledgers(plan.folder, [3]).tokens == 120  # before the pass is over
    assert read_ledgers(plan.folder, [3]) == Reading(dict.fromkeys(names, 120), 2, 120, pytest.approx(1.2))


def test_damage_and_a_full_disk_cost_no_run(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = ledger_file(plan.folder, 0)
    file.parent.mkdir(parents=True)
    file.write_text('{"alone": {"a"')
    assert read_ledgers(plan.folder, [0]) == Reading()
    blocked = RunFolder(tmp_path / "blocked").root
    blocked.write_text("a file where a folder should be")
    lm, ledger = Lm(), Ledger(blocked / "0_lm.json")
    with ledger.training(lm, plan.runs):
        lm.read(5)
    assert ledger.total.tokens == 5
    assert caplog.text.count("passes are not counted") == 2


def test_nothing_is_told_where_nothing_was_trained(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tell(Reading())
    assert not caplog.text
    tell(Reading({"a": 1024}, 1, 1024, 0.25))
    assert "LM: 1 pass, 1,024 tokens in 0.2 s, for 1 run; one by one: 1 pass, 1,024 tokens" in caplog.text


def test_runs_that_read_what_others_cached_say_nothing_of_single_runs() -> None:
    total = Reading({"a": 1024}, 1, 1024, 0.25) + Reading({"b": 0})
    assert str(total) == "LM: 1 pass, 1,024 tokens in 0.2 s, for 2 runs"
