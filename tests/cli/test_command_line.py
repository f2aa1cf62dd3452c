"""From the command line to the plan: grids, merging, names, and every problem at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

import sae_sweep.__main__ as entry
from sae_sweep.plan.plan import Plan
from tests.conftest import Cli


def names(plan: Plan) -> list[str]:
    return [run.name for run in plan.runs]


def test_comma_lists_multiply(planned: Callable[..., Plan]) -> None:
    plan = planned("-m", "dataset=owt,tinystories", "seed=42,49")
    assert names(plan) == [
        "gpt2-small_L8_owt_topk_x16_k16_s42",
        "gpt2-small_L8_owt_topk_x16_k16_s49",
        "gpt2-small_L8_tinystories_topk_x16_k16_s42",
        "gpt2-small_L8_tinystories_topk_x16_k16_s49",
    ]
    assert [len(group) for group in plan.groups()] == [2, 2]


def test_a_lone_run_is_a_sweep_of_one_and_needs_no_flag(planned: Callable[..., Plan]) -> None:
    assert names(planned()) == ["gpt2-small_L8_owt_topk_x16_k16_s49"]


def test_solo_runs_go_one_by_one(planned: Callable[..., Plan]) -> None:
    plan = planned("seed=42,49", "launcher=solo")
    assert [len(group) for group in plan.groups()] == [1, 1]


def test_a_key_without_meaning_is_dropped_and_duplicates_merge(planned: Callable[..., Plan]) -> None:
    plan = planned("architecture=topk,jumprelu", "k=16,32")
    assert names(plan) == [
        "gpt2-small_L8_owt_topk_x16_k16_s49",
        "gpt2-small_L8_owt_topk_x16_k32_s49",
        "gpt2-small_L8_owt_jumprelu_x16_l0c0.0018_s49",
    ]
    assert plan.runs[-1].config.k is None


def test_the_baseline_and_its_spelling_out_are_one_run(planned: Callable[..., Plan]) -> None:
    assert len(planned("k=16,16", "seed=49").runs) == 1


def test_the_same_command_finds_its_sweep_whatever_the_order(planned: Callable[..., Plan]) -> None:
    first = planned("seed=42,49", "k=16,32")
    assert planned("k=32,16", "seed=49,42").sweep == first.sweep
    assert planned("seed=42,50", "k=16,32").sweep != first.sweep


def test_names_carry_what_differs_from_the_numerics_own_defaults(planned: Callable[..., Plan]) -> None:
    (name,) = names(planned("numerics=study", "init.shared=false"))
    assert name == "gpt2-small_L8_owt_topk_x16_k16_s49_study_shared-false"


def test_study_numerics_are_the_studys(planned: Callable[..., Plan]) -> None:
    config = planned("numerics=study").runs[0].config
    assert (config.packing.bos_every_sequence, config.packing.mask_special) == (False, False)
    assert config.packing.max_document_tokens == 1024
    assert config.activations.buffer_tokens == 655_360
    assert (config.optimizer.warmup_fraction, config.optimizer.decay_fraction) == (0, 0)
    assert config.optimizer.clip_norm == 1e5


def test_a_local_model_is_named_for_its_folder(planned: Callable[..., Plan]) -> None:
    (name,) = names(planned("model.path=/somewhere/my-lm", "dataset=files", "dataset.path=/texts"))
    assert name == "my-lm_L8_files_topk_x16_k16_s49"


def test_every_problem_is_reported_at_once(cli: Cli) -> None:
    result = cli(
        "sed=3", "architecture=topkk", "layer=abc", "k=2.5", "seed=1,x", "+foo=2", "dataset=owt,owl", "~k"
    )
    assert result.code == 2
    assert result.err.splitlines() == [
        "sae_sweep: unknown key sed (did you mean seed?)",
        "sae_sweep: architecture=topkk: not one of batchtopk, jumprelu, relu, topk (did you mean topk?)",
        "sae_sweep: layer=abc: Value 'abc' of type 'str' could not be converted to Integer",
        "sae_sweep: k=2.5: Value '2.5' of type 'float' could not be converted to Integer",
        "sae_sweep: seed=x: Value 'x' of type 'str' could not be converted to Integer",
        "sae_sweep: +foo=2: keys cannot be added; unknown key foo: see --help for all keys",
        "sae_sweep: dataset=owl: not one of files, library_code, library_docs, owt, pile, redpajama, "
        "stdlib_code, stdlib_docs, tinystories (did you mean owt?)",
        "sae_sweep: ~k: no key can be deleted; give it a value, or null",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("layer=13", "k=999999"), "layer=13: gpt2-small has layers 0 to 11"),
        (("layer=13", "k=999999"), "k=999999 is above d_sae=12288"),
        (("architecture=jumprelu", "k=16"), "k means nothing to jumprelu: its key is l0_coefficient"),
        (("launcher=fused,solo",), "launcher cannot be swept"),
        (("tracking.project=a,b",), "tracking.project cannot be swept"),
        (("seed",), "seed: not of the form key=value"),
        (("dataset=files",), "dataset.path is empty"),
    ],
)
def test_contradictions_exit_with_2_and_leave_nothing(cli: Cli, words: tuple[str, ...], message: str) -> None:
    result = cli(*words)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not any(Path.cwd().iterdir())


def test_two_models_of_one_name_are_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_fingerprints", lambda config: {"model": config.model.path})
    result = cli("model.path=/a/lm,/b/lm")
    assert result.code == 1
    assert "two different runs would both be called lm_L8_owt_topk_x16_k16_s49" in result.err


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


def test_help_names_the_groups(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    for word in ("stdlib_docs", "jumprelu", "experiment=quickstart", "l0_coefficient", "Exit codes"):
        assert word in result.out


def test_keys_of_slurm_and_further_options_of_sbatch(planned: Callable[..., Plan]) -> None:
    launcher = planned(
        "launcher=slurm", "launcher.slurm.extra={nice: 5, comment: two words}", "launcher.slurm.setup=[a,b]"
    ).config.launcher
    assert (launcher.cluster, launcher.kind, launcher.slurm.mem_gb) == ("slurm", "fused", 32)
    assert launcher.slurm.extra == {"nice": 5, "comment": "two words"}
    assert launcher.slurm.setup == ["a", "b"]
    assert planned("launcher.cluster=slurm").config.launcher.slurm.extra == {}
    assert planned("launcher=local", "launcher.workers=3").config.launcher.workers == 3
