"""Hydra's own ways: its flags, config folders of one's own and completion, from any working directory."""

from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import yaml
from hydra.core.singleton import Singleton

from sae_sweep.cli.schema import conf_folder
from sae_sweep.plan import Plan
from tests.conftest import Cli

HEAD = "# @package _global_\ndefaults:\n"
MINE = f"""{HEAD}  - override /model: gpt2-pico
  - override /dataset: notes
layer: 6
tokens: 1e6
optimizer: {{lr: 3e-3}}
common: {{init.shared: false}}
grids:
  - seed: [1, 2]
"""


@pytest.fixture
def my_conf(tmp_path: Path) -> Path:
    """A folder with an experiment and a dataset of one's own, outside the package."""
    folder = tmp_path / "my conf"
    for name, text in {
        "experiment/mine": MINE,
        "experiment/sub/deep": f"{HEAD}  - /experiment/quickstart\n  - _self_\ntokens: 2e5\n",
        "experiment/studied": f"{HEAD}  - override /numerics: study\nbatch: 64\noptimizer: {{lr: 1e-3}}\n",
        "dataset/notes": "defaults:\n  - /schema/dataset/files@_here_\nname: notes\npath: notes.jsonl\n",
        "other": "defaults:\n  - config\n  - _self_\nseed: 7\n",
    }.items():
        (folder / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def names(plan: Plan) -> list[str]:
    return [run.name for run in plan.runs]


@pytest.mark.parametrize(
    "flag", [["--config-dir", "my conf"], ["-cd=my conf"], ['hydra.searchpath=["file://my conf"]']]
)
def test_an_experiment_of_ones_own_lives_outside_the_package(
    planned: Callable[..., Plan], my_conf: Path, flag: list[str]
) -> None:
    """Its sweep has its name, and its runs are called by what differs from its own keys."""
    plan = planned("experiment=mine", *flag)
    assert plan.sweep == "mine"
    assert names(plan) == [f"gpt2-pico_L6_notes_topk_x16_k16_s{seed}" for seed in (1, 2)]
    assert {(run.config.tokens, run.config.init.shared) for run in plan.runs} == {(1_000_000, False)}
    plan = planned("seed=2", *flag, "experiment=mine", "tokens=1e5", "dataset=notes,owt")
    assert names(plan) == [f"gpt2-pico_L6_{text}_topk_x16_k16_s2_tokens-1e5" for text in ("notes", "owt")]


def test_experiments_may_inherit_and_lie_in_folders(planned: Callable[..., Plan], my_conf: Path) -> None:
    plan = planned("-cd", str(my_conf), "experiment=sub/deep", "seed=42", "architecture=topk")
    assert plan.sweep == "sub-deep"
    assert names(plan) == [f"gpt2-pico_L6_{text}_topk_x8_k16_s42" for text in ("stdlib_docs", "library_code")]
    assert plan.runs[0].config.tokens == 200_000


def test_tasks_on_files_find_the_sweep_of_an_experiment(cli: Cli, my_conf: Path) -> None:
    result = cli("task=status", "-cd", "my conf", "experiment=mine")
    assert f"{my_conf.parent / 'multirun' / 'mine'}: no sweep there" in result.err


def test_another_primary_config(planned: Callable[..., Plan], my_conf: Path) -> None:
    assert names(planned("-cd", "my conf", "-cn", "other")) == ["gpt2-small_L8_owt_topk_x16_k16_s7"]


def test_names_of_the_quickstart_are_short(planned: Callable[..., Plan]) -> None:
    first, *_ = names(planned("experiment=quickstart"))
    assert first == "gpt2-pico_L6_stdlib_docs_topk_x8_k16_s42"


@pytest.mark.parametrize(
    ("words", "extras"),
    [
        ([], ""),
        (["numerics=modern"], "_modern"),
        (["optimizer.lr=3e-4"], "_lr-0.0003"),
        (["batch=64", "packing.seq_len=64"], "_seq_len-64"),
        (["grids=[{batch: 64, optimizer.lr: 0.5}]"], "_lr-0.5"),
        (["common={optimizer.lr: [0.5]}"], "_lr-0.5"),
    ],
)
def test_a_name_says_what_differs_from_the_experiments_own_keys(
    planned: Callable[..., Plan], my_conf: Path, words: list[str], extras: str
) -> None:
    (name,) = names(planned("-cd", "my conf", "experiment=studied", *words))
    assert name == f"gpt2-small_L8_owt_topk_x16_k16_s49{extras}"


def test_an_experiment_need_not_be_valid_without_the_command_line(
    planned: Callable[..., Plan], my_conf: Path
) -> None:
    text = "# @package _global_\nmine: 3\n"
    del text
    file = my_conf / "experiment" / "open.yaml"
    file.write_text("# @package _global_\nseed: ${data_seed}\nbatch: 64\nlayer: 99\n")
    (name,) = names(planned("-cd", "my conf", "experiment=open", "layer=3", "data_seed=5"))
    assert name == "gpt2-small_L3_owt_topk_x16_k16_s5_data_seed-5"


@pytest.mark.parametrize("words", [["task=plan", "-m"], ["-m", "task=plan"], ["task=plan", "--multirun"]])
def test_flags_stand_anywhere(cli: Cli, words: list[str]) -> None:
    result = cli(*words, "plan.tflops=1", "seed=1,2")
    assert (result.code, result.err) == (0, "")
    assert "2 runs in 1 LM pass" in result.out


def test_status_with_m_says_what_status_says(cli: Cli) -> None:
    said = [cli("task=status", *flag, "sweep=x") for flag in ([], ["-m"])]
    assert said[0] == said[1]
    assert said[0].code == 1


def test_the_config_is_shown(cli: Cli, my_conf: Path) -> None:
    whole = cli("--cfg", "job", "seed=3", "-cd", "my conf", "experiment=mine", "sweep=2026_11_26")
    shown = yaml.safe_load(whole.out)
    assert (whole.code, whole.err) == (0, "")
    assert (shown["seed"], shown["sweep"], shown["dataset"]["name"]) == (3, "2026_11_26", "notes")
    part = cli("--cfg", "job", "--package", "optimizer", "optimizer.lr=1")
    assert part.out.startswith("# @package optimizer\nlr: 1.0\n")
    assert "sweeper" in cli("-c", "hydra", "-p", "hydra").out
    assert "hydra:" in cli("--cfg", "all").out
    assert yaml.safe_load(cli("--cfg", "job", "--resolve", "k=8").out)["architecture"]["k"] == 8


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--cfg", "job", "seed=1,2"], "seed=1,2: --cfg and --info show one run; give one value"),
        (["-cd", "nowhere"], "--config-dir nowhere: no such folder"),
        (["hydra.searchpath=[nowhere]"], "hydra.searchpath=[nowhere]: there is no folder nowhere"),
        (
            ["hydra.searchpath=nowhere"],
            "hydra.searchpath=nowhere: write hydra.searchpath=[FOLDER], or [FOLDER,FOLDER]",
        ),
        (
            ["hydra.searchpath=a,b"],
            "hydra.searchpath=a,b: write hydra.searchpath=[FOLDER], or [FOLDER,FOLDER]",
        ),
        (["hydra.searchpath=[pkg://none]"], "hydra.searchpath=[pkg://none]: there is no folder pkg://none"),
        (["--foo"], "--foo: no such flag (see --hydra-help); keys are written as KEY=VALUE"),
        (["--tokens=1e8"], "--tokens=1e8: write tokens=1e8, without dashes"),
        (["-cd"], "argument --config-dir/-cd: expected one argument (see --hydra-help)"),
        (["-cn", "none"], "Cannot find primary config 'none'. Check that it's in your config search path."),
        (["+seed=3"], "+seed: there is a key seed already: leave out the +"),
        (
            ["+experiment=quickstart"],
            "experiment is chosen twice: write experiment=quickstart without +, or "
            "`override /experiment: quickstart`",
        ),
        (["--experimental-rerun", "x"], "--experimental-rerun is not supported: type the command again"),
    ],
)
def test_a_wrong_flag_is_one_line(cli: Cli, words: list[str], line: str) -> None:
    result = cli("task=plan", *words)
    assert (result.code, result.out, result.err) == (2, "", f"sae_sweep: {line}\n")


def test_info_is_said_once_on_standard_output(cli: Cli, my_conf: Path) -> None:
    for topic in ("defaults", "defaults-tree", "searchpath", "config", "plugins"):
        result = cli("--info", topic, "-cd", "my conf")
        assert (result.code, result.err) == (0, "")
        assert result.out.strip()
    result = cli("--info", "searchpath", "-cd", "my conf")
    assert result.out.count(f"file://{my_conf}") == 1


def test_help_lists_the_choices_of_ones_own_folder(cli: Cli, my_conf: Path) -> None:
    assert "mine" in cli("--help", "-cd", "my conf").out
    assert "\n  - mine" not in cli("--help").out
    assert "-m" in cli("--hydra-help").out


def test_the_version_is_ours(cli: Cli) -> None:
    assert cli("--version").out.startswith("sae_sweep ")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("sae-sweep dataset=st", "dataset=stdlib_code dataset=stdlib_docs"),
        ("sae-sweep seed=1,2 optimizer.l", "optimizer.lr="),
        ("sae-sweep experiment=qu", "experiment=quickstart"),
    ],
)
def test_the_shell_completes(cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, completed: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli("-sc", "query=bash").out == f"{completed}\n"
    assert cli("-sc", "install=bash").out.endswith("-F hydra_bash_completion sae-sweep\n")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("layer: 4\n", ["experiment=bad: its file must begin with the line `# @package _global_`"]),
        ("# @package _global_\nlayr: 4\n", ["experiment/bad.yaml: unknown key layr (did you mean layer?)"]),
        (
            "# @package _global_\nmodel: gpt2-pico\n",
            [
                "experiment/bad.yaml: model is a group of keys: choose with "
                "`defaults: [override /model: CHOICE]`"
            ],
        ),
        (
            "# @package _global_\ndefaults:\n  - override /model: gpt3\n",
            [
                "In 'config': Could not find 'model/gpt3'; 'model' has gpt2-pico, gpt2-small, smollm2-135m, "
                "synthetic"
            ],
        ),
        (
            "# @package _global_\ndefaults:\n  - override model: gpt2-pico\n",
            [
                "In 'experiment/bad': Could not override 'experiment/model@model'. No match in the defaults "
                "list. Groups of the package begin with /, as in `override /model: gpt2-pico`"
            ],
        ),
        (
            "# @package _global_\noptimizer: {lr: high}\n",
            ["experiment/bad.yaml: optimizer.lr: Value 'high' of type 'str' could not be converted to Float"],
        ),
        (
            "# @package _global_\nsweep: 2026_11_26\nlayer: abc\ndataset: {name: 007}\nseed: [1]\n"
            "launcher: {slurm: {setup: [on, a]}}\n",
            [
                "sweep=20261126: must be text: put it in quotes",
                "launcher.slurm.setup=[True, 'a']: must hold text: put it in quotes",
                "dataset.name=7: must be text: put it in quotes",
                "layer=abc: must be a whole number, written in digits",
                "seed=[1]: must be a whole number, written in digits",
            ],
        ),
        ("# @package _global_\nseed: 1\nseed: 2\n", ["{file}, line 3: found duplicate key seed"]),
        ("# @package _global_\nseed: 1\n k: [\n", ["{file}, line 3: mapping values are not allowed here"]),
        ('# @package _global_\nsweep: "\x01"\n', ["{file}: special characters are not allowed"]),
    ],
)
def test_a_wrong_file_of_ones_own_is_named(cli: Cli, my_conf: Path, text: str, lines: list[str]) -> None:
    file = my_conf / "experiment" / "bad.yaml"
    file.write_text(text)
    result = cli("task=plan", "-cd", "my conf", "experiment=bad")
    assert result.code == 2
    assert result.err.splitlines() == [f"sae_sweep: {line.format(file=file)}" for line in lines]


def test_a_file_that_is_not_utf_8_is_named(cli: Cli, my_conf: Path) -> None:
    file = my_conf / "experiment" / "bad.yaml"
    file.write_bytes(b"# @package _global_\nsweep: \xff\n")
    result = cli("-cd", "my conf", "experiment=bad")
    assert result.err.startswith(f"sae_sweep: {file} is not text in UTF-8: ")


def test_the_conf_folder_of_a_wheel_lies_in_the_package(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, my_conf: Path
) -> None:
    """As `pip install` puts it: another folder than that of a checkout, with the same groups."""
    inside = tmp_path / "site-packages" / "sae_sweep" / "conf"
    inside.parent.mkdir(parents=True)
    inside.symlink_to(conf_folder())
    for module in ("app", "groups"):
        monkeypatch.setattr(f"sae_sweep.cli.{module}.conf_folder", lambda: inside)
    shown = cli("--cfg", "job", "-cd", "my conf", "experiment=mine").out
    assert yaml.safe_load(shown)["model"]["path"] == "bundled:gpt2-pico"


def test_a_job_of_another_launcher_gets_the_groups_in_a_pickle(cli: Cli) -> None:
    """Hydra pickles all resolvers; that of the help knows the groups."""
    assert cli("task=plan", "plan.tflops=1").code == 0
    assert cloudpickle.loads(cloudpickle.dumps(Singleton.get_state()))
