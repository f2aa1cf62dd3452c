"""The command line up to the plan: grids, merging, names, and all problems at once."""

import dataclasses
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sae_sweep.config import ActivationsConfig, CommandConfig, LauncherConfig, RunConfig, TopKConfig, flatten
from sae_sweep.plan import Plan
from sae_sweep.tasks import TASKS, Task, command_class
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
    plan = planned("seed=42,49", "fuse=false")
    assert [len(group) for group in plan.groups()] == [1, 1]


def test_a_key_without_meaning_is_dropped_and_duplicates_merge(planned: Callable[..., Plan]) -> None:
    plan = planned("architecture=topk,jumprelu", "k=16,32")
    assert names(plan) == [
        "gpt2-small_L8_owt_topk_x16_k16_s49",
        "gpt2-small_L8_owt_topk_x16_k32_s49",
        "gpt2-small_L8_owt_jumprelu_x16_l0c0.0018_s49",
    ]
    assert "k" not in plan.runs[-1].config.as_dict()


@pytest.mark.parametrize("key", ["k", "architecture.k"])
def test_k_lives_once(planned: Callable[..., Plan], key: str) -> None:
    plan = planned(f"{key}=32", "tracking=none")
    assert names(plan) == ["gpt2-small_L8_owt_topk_x16_k32_s49"]
    assert flatten(plan.runs[0].config.as_dict())["architecture.k"] == 32
    assert not {"k", "l0_coefficient", "l1_coefficient"} & plan.runs[0].config.as_dict().keys()
    assert len(planned(f"{key}=32,64").runs) == 2


def test_a_run_that_says_two_things_of_k_is_refused(cli: Cli) -> None:
    result = cli("hydra.mode=RUN", "k=32", "architecture.k=8")
    assert result.code == 2
    assert "k=32, but architecture.k=8: they are one key, give one" in result.err


@pytest.mark.parametrize(
    "words",
    [
        ["grids=[{architecture.k: [8, 16], k: [32]}]"],
        ["grids=[{zip: {architecture.k: [8, 16], k: [1, 2]}}]"],
        ["grids=[{k: [16, 32], exclude: [{k: 16, architecture.k: 32}]}]"],
        ["common={k: 16, architecture.k: 8}"],
    ],
)
def test_two_spellings_of_one_key_in_a_grid_are_refused(cli: Cli, words: list[str]) -> None:
    result = cli("task=plan", *words)
    assert result.code == 2
    assert "k and architecture.k are one key: give one of them" in result.err


@pytest.mark.parametrize(
    "words", [["hydra.mode=RUN", "task=statsu"], ["hydra.sweeper._target_=foo.bar"], ["experiment=nothing"]]
)
def test_an_error_while_composing_is_one_line(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("sae_sweep: ")


def test_a_mistake_in_a_task_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> int:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("sae_sweep.tasks.plan.show_plan", broken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        cli("task=plan")


def test_two_tasks_may_each_add_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in (("one", "first"), ("two", "second")):
        added = dataclasses.make_dataclass(name, [(key, int, 1)], bases=(CommandConfig,), frozen=True)
        monkeypatch.setattr("sae_sweep.config." + name, added, raising=False)
        monkeypatch.setitem(TASKS, name, Task("", "", command=f"sae_sweep.config:{name}"))
    keys = {key.name for key in dataclasses.fields(command_class())}
    assert {"first", "second", "launcher"} <= keys


def stopped(_: object) -> int:
    """A task."""
    signal.raise_signal(signal.SIGTERM)
    return 0


@pytest.mark.parametrize(
    ("words", "what_now"),
    [
        (["task=train"], " to resume"),
        (["task=cache"], " to resume"),
        (["task=cache", "action=verify"], ": it begins anew"),
        (["task=match"], ": it begins anew"),
    ],
)
def test_a_stopped_task_says_whether_it_goes_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], what_now: str
) -> None:
    name = words[0].removeprefix("task=")
    monkeypatch.setitem(TASKS, name, TASKS[name]._replace(function=f"{__name__}:stopped"))
    result = cli(*words, "model=gpt2-pico", "layer=1", "dataset=stdlib_docs")
    assert result.code == 128 + signal.SIGTERM
    assert result.err.endswith(f"stopped by SIGTERM; launch the same command again{what_now}\n")


@pytest.mark.parametrize("key", ["l0_coefficient", "architecture.l0_coefficient"])
def test_so_do_the_coefficients(planned: Callable[..., Plan], key: str) -> None:
    plan = planned("architecture=jumprelu", f"{key}=0.5")
    assert flatten(plan.runs[0].config.as_dict())["architecture.l0_coefficient"] == 0.5


def test_the_baseline_is_the_defaults_of_the_config_classes(planned: Callable[..., Plan]) -> None:
    plan = planned()
    chosen = {"model", "dataset", "architecture", "activations", "normalisation"}
    ours, usual = plan.runs[0].config.as_dict(), RunConfig().as_dict()
    assert {k: v for k, v in ours.items() if k not in chosen} == {
        k: v for k, v in usual.items() if k not in chosen
    }
    assert plan.runs[0].config.architecture == TopKConfig()
    assert plan.runs[0].config.normalisation == "layer_norm"
    assert replace(plan.runs[0].config.activations, dtype="auto") == ActivationsConfig()
    assert plan.command == type(plan.command)()
    assert planned("launcher=slurm").command.launcher == LauncherConfig(kind="slurm")


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
        *("sed=3", "architecture=topkk", "layer=abc", "k=2.5", "seed=1,x", "+foo=2", "dataset=owt,owl", "~k"),
        "init.from=general",
    )
    assert result.code == 2
    assert result.err.splitlines() == [
        "sae_sweep: unknown key sed (did you mean seed or sae?)",
        "sae_sweep: architecture=topkk: not one of batchtopk, jumprelu, relu, topk (did you mean topk?)",
        "sae_sweep: layer=abc: must be a whole number, written in digits",
        "sae_sweep: k=2.5: must be a whole number, written in digits",
        "sae_sweep: seed=x: must be a whole number, written in digits",
        "sae_sweep: +foo=2: keys cannot be added; unknown key foo: see --help for all keys",
        "sae_sweep: dataset=owl: not one of domain, faithful, files, library_code, library_docs, mix, "
        "owt, pile, redpajama, stdlib_code, stdlib_docs, synthetic, tinystories (did you mean owt?)",
        "sae_sweep: ~k: no key can be deleted; give it a value, or null",
        "sae_sweep: unknown key init.from (did you mean init.sae?)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("layer=13", "k=999999"), "layer=13: gpt2-small has layers 0 to 11"),
        (("layer=13", "k=999999"), "k=999999 is above d_sae=12288"),
        (("architecture=jumprelu", "k=16"), "k means nothing to jumprelu: its key is l0_coefficient"),
        (("launcher=local,slurm",), "launcher cannot be swept"),
        (("fuse=true,false",), "fuse cannot be swept"),
        (("task=tran",), f"task=tran: not one of {', '.join(TASKS)}"),
        (("k=16", "architecture.k=32"), "k and architecture.k are one key: give one of them"),
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


def test_a_key_of_swept_choices_need_not_be_one_of_the_default(planned: Callable[..., Plan]) -> None:
    plan = planned("architecture=jumprelu,relu", "architecture.warmup_fraction=0.5", "seed=1")
    assert names(plan) == [
        f"gpt2-small_L8_owt_{kind}_s1_architecture.warmup_fraction-0.5"
        for kind in ("jumprelu_x16_l0c0.0018", "relu_x16_l1c0.002")
    ]
    plan = planned("dataset=files,files", "dataset.path='a,b'", "dataset.text_key=007")
    assert [flatten(run.config.as_dict())["dataset.text_key"] for run in plan.runs] == ["007"]


@pytest.mark.parametrize(
    "words", [["architecture=jumprelu,topk"], ["architecture=topk"], ["architecture=topk", "seed=1,2"]]
)
def test_a_key_that_a_choice_lacks_is_named(cli: Cli, words: list[str]) -> None:
    result = cli("task=plan", *words, "architecture.bandwidth=0.1")
    assert (result.code, result.err) == (
        2,
        "sae_sweep: architecture.bandwidth: the chosen architecture has no key bandwidth\n",
    )


def test_help_names_the_groups(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    for word in ("stdlib_docs", "jumprelu", "experiment=quickstart", "l0_coefficient", "Exit codes"):
        assert word in result.out
    for task in TASKS:
        assert f"task={task} " in result.out
    assert "schema" not in result.out


def test_keys_of_slurm_and_further_options_of_sbatch(planned: Callable[..., Plan]) -> None:
    launcher = planned(
        "launcher=slurm", "launcher.slurm.extra={nice: 5, comment: two words}", "launcher.slurm.setup=[a,b]"
    ).command.launcher
    assert (launcher.kind, launcher.slurm.mem_gb) == ("slurm", None)
    assert launcher.slurm.extra == {"nice": 5, "comment": "two words"}
    assert launcher.slurm.setup == ["a", "b"]
    assert planned("launcher.kind=slurm").command.launcher.slurm.extra == {}
    assert planned("launcher=local", "launcher.workers=3").command.launcher.workers == 3
