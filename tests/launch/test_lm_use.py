"""Counts of the language model's tokens and passes."""

import dataclasses

import pytest

from sae_sweep.launch.lm_use import LmUse, log_lm_use
from sae_sweep.plan import Plan
from sae_sweep.store import PlannedRun, set_state


class Lm:
    tokens_read = 1000
    seconds = 9.0

    def read(self, tokens: int) -> None:
        self.tokens_read += tokens
        self.seconds += tokens / 100


def end(run: PlannedRun, use: LmUse) -> None:
    set_state(run, "done", lm=use.record(run))


def logged(plan: Plan, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    caplog.set_level("INFO")
    log_lm_use(plan.runs)
    return caplog.text


def test_a_run_is_charged_what_was_read_until_it_ended(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    lm = Lm()
    use = LmUse(lm)  # type: ignore[arg-type]
    lm.read(100)
    end(plan.runs[0], use)
    assert "LM: 1 pass, 100 tokens in 1.0 s, for 1 run; one by one: 1 pass, 100 tokens" in logged(
        plan, caplog
    )
    lm.read(1050)
    end(plan.runs[1], use)
    assert "LM: 1 pass, 1,150 tokens in 11.5 s, for 2 runs; one by one: 2 passes, 1,250 tokens" in logged(
        plan, caplog
    )


def test_parts_of_a_group_are_passes_of_their_own(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    lm = Lm()
    use = LmUse(lm)  # type: ignore[arg-type]
    for run in plan.runs:
        lm.read(100)
        end(run, use)
        use.begin()
    assert "LM: 2 passes, 200 tokens in 2.0 s, for 2 runs; one by one: 2 passes, 200 tokens" in logged(
        plan, caplog
    )


def test_a_run_is_charged_its_share_of_the_cache(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    lm = Lm()
    use = LmUse(lm)  # type: ignore[arg-type]
    lm.read(100)
    long, short = plan.runs
    short = dataclasses.replace(
        short, config=dataclasses.replace(short.config, tokens=long.config.tokens // 4)
    )
    use.filled(long.config.steps)
    end(long, use)
    end(short, use)
    assert "LM: 1 pass, 100 tokens in 1.0 s, for 2 runs; one by one: 2 passes, 125 tokens" in logged(
        plan, caplog
    )


def test_runs_that_read_what_others_cached_say_nothing_of_single_runs(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    end(plan.runs[0], LmUse(Lm()))  # type: ignore[arg-type]
    assert logged(plan, caplog).rstrip().endswith("LM: 0 passes, 0 tokens in 0.0 s, for 1 run")


def test_nothing_is_logged_if_nothing_was_trained(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    set_state(plan.runs[0], "pending")
    assert not logged(plan, caplog)
