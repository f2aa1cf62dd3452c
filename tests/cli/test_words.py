"""What is typed is taken as it was typed, and what Hydra's grammar refuses is shown in quotes."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.cli.diagnose import diagnose
from sae_sweep.cli.groups import Groups, config_loader
from sae_sweep.cli.schema import of_text
from sae_sweep.cli.words import as_typed, how_to_quote, parsed, quoted, values_of
from sae_sweep.plan import Plan
from tests.conftest import Cli

TEXTS = ["2026_11_26", "1e5", "007", "1_000", "1.0", "+5", "1.", "inf", "NaN", "true", "FALSE", "yes", "5 6"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_typed(planned: Callable[..., Plan], text: str) -> None:
    keys = ("sweep", "dataset.name", "model.name", "tracking.project", "paths.output")
    plan = planned(*(f"{key}={text}" for key in keys), "tracking=none")
    command, run = plan.command, plan.runs[0].config
    held = (plan.sweep, run.dataset.name, run.model.name, command.tracking.project, command.paths.output)
    assert held == (text,) * len(keys)


def test_so_are_lists_of_text_and_choices(planned: Callable[..., Plan], tmp_path: Path) -> None:
    plan = planned("launcher=slurm", "launcher.slurm.setup=[1_0,true,a b]", "launcher.slurm.account=0012")
    assert plan.command.launcher.slurm.setup == ["1_0", "true", "a b"]
    assert plan.command.launcher.slurm.account == "0012"
    folder = tmp_path / "conf" / "dataset"
    folder.mkdir(parents=True)
    for name in ("1e5", "2026_1", "true"):
        (folder / f"{name}.yaml").write_text(f"defaults:\n  - stdlib_docs\nname: '{name}'\n")
    plan = planned("-cd", "conf", "dataset=1e5,2026_1,true", "model.name=null")
    assert [run.config.dataset.name for run in plan.runs] == ["1e5", "2026_1", "true"]


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("sweep=a,1e5", "sweep=a,'1e5'"),
        ("sweep=choice(1,b)", "sweep=choice('1',b)"),
        ("sweep=sort(3,1,reverse=true)", "sweep=sort('3','1',reverse=true)"),
        ("sweep=range(1,3)", "sweep=range(1,3)"),
        ("sweep=[1,[2,true]]", "sweep=['1',['2','true']]"),
        ("sweep={a: 1, 2: b}", "sweep={a: 1, 2: b}"),
        ("sweep=null", "sweep=null"),
        ("sweep='1e5'", "sweep='1e5'"),
        ("sweep=${seed}", "sweep=${seed}"),
        ("sweep= 5 ", "sweep= '5' "),
        ("sweep=", "sweep="),
        ("+sweep=5", "+sweep='5'"),
        ("seed=5", "seed=5"),
        ("~sweep", "~sweep"),
        ("sweep=a=b", "sweep=a=b"),
        ("sweep=ü", "sweep=ü"),
    ],
)
def test_only_whole_values_become_text(word: str, read: str) -> None:
    assert as_typed(word, lambda key: key == "sweep") == read


def test_kinds_of_text() -> None:
    for hint in (str, str | None, list[str], list[str] | None, tuple[str, ...]):
        assert of_text(hint)
    for hint in (int, bool | None, dict[str, str], dict[str, Any], list[int], list[dict[str, Any]]):
        assert not of_text(hint)


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("tokens=1e8", 10**8),
        ("tokens=1_000_000", 10**6),
        ("tokens=1.5e6", 1_500_000),
        ("tokens='100_000'", 100_000),
        ("tokens=100000.0", 100_000),
        ("tokens=${times:1000,100}", 100_000),
        ("grids=[{tokens: [1e6]}]", 10**6),
        ("common={tokens: 1e6}", 10**6),
    ],
)
def test_a_whole_number_is_taken_however_it_is_written(
    planned: Callable[..., Plan], word: str, tokens: int
) -> None:
    run = planned(word).runs[0]
    assert (run.config.tokens, type(run.config.tokens)) == (tokens, int)
    assert run.run_id == planned(f"tokens={tokens}").runs[0].run_id


def test_every_whole_number_is(planned: Callable[..., Plan]) -> None:
    plan = planned("batch=1e3,2e3", "k=3.2e1", "launcher.workers=2e0", "evaluation.tokens=1e4")
    assert [run.config.batch for run in plan.runs] == [1000, 2000]
    assert {run.name for run in plan.runs} == {
        "gpt2-small_L8_owt_topk_x16_k32_s49_batch-1e3",
        "gpt2-small_L8_owt_topk_x16_k32_s49_batch-2e3",
    }
    assert plan.command.launcher.workers == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset.path=/a=b.txt"], """dataset.path=/a=b.txt: write it as 'dataset.path="/a=b.txt"'"""),
        (["dataset.path=~/x"], """dataset.path=~/x: write it as 'dataset.path="~/x"'"""),
        (["dataset.name=ünï中"], """dataset.name=ünï中: write it as 'dataset.name="ünï中"'"""),
        (["model.path=a(b)"], """model.path=a(b): write it as 'model.path="a(b)"'"""),
        (
            ["dataset.path=a=1,b=2"],
            """dataset.path=a=1,b=2: write it as 'dataset.path="a=1","b=2"'""",
        ),
        (
            ["dataset.path=/my", "texts/a"],
            "texts/a: not of the form key=value; if it belongs to the word before it, write "
            """'dataset.path="/my texts/a"'""",
        ),
        (
            ["seed=1,"],
            "seed=1,: a value is missing at a comma; lists have no spaces, "
            "or quotes around them for the shell",
        ),
        (["seed=ü"], "seed=ü: not of the form key=value (see --help)"),
        (["study.datasets={owt: 1e5}"], "study.datasets={owt: 1e5}: must hold text: put it in quotes"),
        (["zip=seed,k"], "zip=seed,k: write zip=[seed,k]"),
        (["zip=seed"], "zip=seed: write zip=[seed]"),
        (["seed=1", "x"], "x: not of the form key=value (see --help)"),
        (["status"], "status: not of the form key=value; did you mean task=status?"),
        (["quickstart"], "quickstart: not of the form key=value; did you mean experiment=quickstart?"),
        (["ü=1"], "ü=1: not of the form key=value (see --help)"),
        (["grids=[{k: ü}]"], "grids=[{k: ü}]: not of the form key=value (see --help)"),
        (["dataset.name=null"], "dataset.name=null: must be text"),
        (["dataset.name=[a]"], "dataset.name=[a]: must be text: put it in quotes"),
    ],
)
def test_a_word_that_is_refused_is_shown_as_it_would_be_taken(words: list[str], line: str) -> None:
    assert diagnose(words, Groups(config_loader())) == [line]


def test_text_of_a_grid_is_in_quotes(cli: Cli) -> None:
    result = cli("task=plan", "grids=[{dataset.name: [007, 1e5, a, '1']}]")
    assert result.err.splitlines() == [
        "sae_sweep: grid 1: dataset.name=100000.0: must be text: put it in quotes"
    ]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_is_shown_is_what_was_typed_through_the_shell_and_hydras_grammar(text: str) -> None:
    override = parsed(f"dataset.path={quoted(text)}")
    assert not isinstance(override, Exception)
    assert values_of(override) == [text]
    shown = how_to_quote(f"dataset.path={text}")
    if shown is not None:
        (word,) = shlex.split(shown)
        override = parsed(word)
        assert not isinstance(override, Exception)
        if "," not in text:
            assert values_of(override) == [text.strip() or text]


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["zip=[seed,k]"], [(1, 16, 8), (2, 32, 8)]),
        (["zip=[k,seed]", "layer=3,4"], [(1, 16, 3), (2, 32, 3), (1, 16, 4), (2, 32, 4)]),
        (["zip=[seed,architecture.k]"], [(1, 16, 8), (2, 32, 8)]),
        (["zip=[[seed,k,layer]]", "layer=3,4"], [(1, 16, 3), (2, 32, 4)]),
        (["zip=[[seed,layer],[k]]", "layer=3,4"], [(1, 16, 3), (1, 32, 3), (2, 16, 4), (2, 32, 4)]),
        (["zip=[]"], [(1, 16, 8), (1, 32, 8), (2, 16, 8), (2, 32, 8)]),
    ],
)
def test_zipped_lists_advance_together(
    planned: Callable[..., Plan], words: list[str], runs: list[tuple[int, int, int]]
) -> None:
    plan = planned("seed=1,2", "k=16,32", *words)
    found = [(run.config.seed, run.config.architecture.k, run.config.layer) for run in plan.runs]  # type: ignore[attr-defined]
    assert found == runs


def test_two_texts_are_swept_with_their_names(planned: Callable[..., Plan]) -> None:
    plan = planned(
        "dataset=files", "dataset.path=a.jsonl,b.jsonl", "dataset.name=x,y", "zip=[dataset.path,dataset.name]"
    )
    assert [(run.config.dataset.path, run.config.dataset.name) for run in plan.runs] == [  # type: ignore[attr-defined]
        ("a.jsonl", "x"),
        ("b.jsonl", "y"),
    ]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["seed=1,2", "k=1,2,3", "zip=[seed,k]"],
         ["zip: the lists must be equally long: seed has 2, k has 3"]),
        (["seed=1", "k=1,2", "zip=[seed,k]"], ["zip: seed has no comma list: give it as seed=A,B"]),
        (["seed=1,2", "zip=[seed,sed]"], ["zip: sed has no comma list: give it as sed=A,B"]),
        (["seed=1,2", "k=1,2", "zip=[seed,k,architecture.k]"], ["zip: k is given twice"]),
        (["zip=[1]"], ["zip=1: write zip=[KEY,KEY], or zip=[[KEY,KEY],[KEY,KEY]], of keys that have comma "
                       "lists"]),
        (
            ["experiment=quickstart", "seed=42,49", "layer=1,2", "zip=[seed,layer]"],
            ["zip: the grids have seed, and a list of it selects among their runs"],
        ),
        (["grids=[{zip: [{k: [1, 2]}, {seed: [1], layer: [1, 2]}]}]"],
         ["grid 1: zip: the lists must be equally long: seed has 1, layer has 2"]),
    ],
)  # fmt: skip
def test_a_wrong_zip_is_refused(cli: Cli, words: list[str], lines: list[str]) -> None:
    result = cli("task=plan", *words)
    assert (result.code, result.err.splitlines()) == (2, [f"sae_sweep: {line}" for line in lines])
