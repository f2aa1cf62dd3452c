"""Grids: their points, their union, selection from the command line, and error messages."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sae_sweep.cli.diagnose import check
from sae_sweep.cli.grids import Grid, read_grids, union
from sae_sweep.cli.groups import Groups, config_loader
from sae_sweep.config import ConfigError
from sae_sweep.plan.plan import Plan
from tests.conftest import Cli

TWO_GRIDS = (
    "grids=[{name: size, dataset: [owt, tinystories], dictionary: [4, 16]},"
    "{name: sparsity, dataset: tinystories, k: [16, 32]},"
    "{architecture: jumprelu, dataset: tinystories, l0_coefficient: [0.004, 0.0018]}]"
)


def read(*grids: Mapping[str, Any], common: Mapping[str, Any] | None = None) -> list[Grid]:
    config = OmegaConf.create({"grids": list(grids), "common": common or {}, "layers": [1, 2]})
    return read_grids(config, functools.partial(check, Groups(config_loader())))


def points(*grids: Mapping[str, Any], **common: Any) -> list[dict[str, Any]]:
    return [dict(point.values) for point in union(read(*grids, common=common))]


def problems(*grids: Mapping[str, Any], common: Mapping[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*grids, common=common)
    return list(caught.value.problems)


def names(plan: Plan) -> list[str]:
    return [run.name.removeprefix("gpt2-small_L8_").removesuffix("_s49") for run in plan.runs]


def test_keys_multiply_and_the_last_turns_fastest() -> None:
    assert points({"seed": [1, 2], "k": [16, 32], "layer": 3}) == [
        {"seed": seed, "k": k, "layer": 3} for seed in (1, 2) for k in (16, 32)
    ]


def test_zipped_keys_advance_together_inside_the_product() -> None:
    assert points({"seed": [1, 2], "zip": {"k": [16, 32], "layer": [8, 4]}}) == [
        {"seed": seed, "k": k, "layer": layer} for seed in (1, 2) for k, layer in ((16, 8), (32, 4))
    ]


def test_a_point_that_fits_all_keys_of_an_exclusion_is_dropped() -> None:
    grid = {
        "seed": [1, 2],
        "k": [16, 32, 64],
        "exclude": [{"seed": 1, "k": [16, 64]}, {"k": 32, "seed": 2}],
    }
    assert points(grid) == [{"seed": 1, "k": 32}, {"seed": 2, "k": 16}, {"seed": 2, "k": 64}]


def test_common_keys_are_part_of_every_grid_and_of_none() -> None:
    assert points({"k": 16}, {"k": 32}, seed=[1, 2]) == [
        {"k": k, "seed": s} for k in (16, 32) for s in (1, 2)
    ]
    assert points({"k": 16, "seed": [1, 2]}, seed=[1, 2]) == [{"k": 16, "seed": s} for s in (1, 2)]
    assert points(seed=[1, 2]) == [{"seed": 1}, {"seed": 2}]


def test_values_may_be_interpolations() -> None:
    assert points({"layer": "${layers}"}) == [{"layer": 1}, {"layer": 2}]
    assert problems({"layer": "${layer}"}) == ["grids: Interpolation key 'layer' not found"]


def test_a_shared_point_is_listed_once_and_knows_all_its_grids() -> None:
    shared, other, last = union(
        read({"seed": 1, "k": [16, 32]}, {"name": "again", "k": [64, 16], "seed": 1}, {"k": 16, "seed": [1]})
    )
    assert (shared.values, shared.grids) == ({"seed": 1, "k": 16}, ("grid 1", "again", "grid 3"))
    assert (other.grids, last.grids) == (("grid 1",), ("again",))


_values = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)
_axes = st.dictionaries(st.sampled_from("abc"), _values, min_size=1)


@st.composite
def _grids(draw: st.DrawFn) -> Grid:
    axes = draw(_axes)
    rows = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3))
    zipped = {"y": [row[0] for row in rows], "z": [row[1] for row in rows]} if draw(st.booleans()) else {}
    zips = [*([zipped] if zipped else []), *([{"u": [0, 1], "v": [1, 0]}] if draw(st.booleans()) else [])]
    zipped = {key: values for one in zips for key, values in one.items()}
    excluded = [
        {key: draw(_values) for key in draw(st.sets(st.sampled_from(sorted({**axes, **zipped})), min_size=1))}
        for _ in range(draw(st.integers(0, 2)))
    ]
    return Grid(draw(st.sampled_from(["one", "two"])), axes, zips, excluded)


def _brute_force(grid: Grid) -> list[dict[str, int]]:
    """All points of a grid by brute force: each assignment of values to its keys is checked."""
    keys = list(grid.held)
    rows = [
        [dict(zip(one, row, strict=True)) for row in zip(*one.values(), strict=True)] for one in grid.zipped
    ]
    tried = [dict(zip(keys, values, strict=True)) for values in itertools.product(range(3), repeat=len(keys))]
    return [
        point
        for point in tried
        if all(point[key] in values for key, values in grid.axes.items())
        and all({key: point[key] for key in some[0]} in some for some in rows)
        and not any(all(point[key] in entry[key] for key in entry) for entry in grid.excluded)
    ]


@settings(deadline=None, max_examples=60)
@given(st.lists(_grids(), max_size=3))
def test_the_union_is_what_brute_force_finds_in_order_of_appearance(grids: list[Grid]) -> None:
    found = union(grids)
    as_set = {frozenset(point.values.items()): point for point in found}
    assert len(as_set) == len(found)
    tried = [(grid.name, {frozenset(point.items()) for point in _brute_force(grid)}) for grid in grids]
    assert set(as_set) == set().union(*(held for _, held in tried))
    for spelled, point in as_set.items():
        holding = [name for name, held in tried if spelled in held]
        assert point.grids == tuple(dict.fromkeys(holding))
    everything = [frozenset(point.items()) for grid in grids for point in grid.points()]
    assert list(as_set) == list(dict.fromkeys(everything))


def test_every_problem_of_every_grid_is_reported_at_once() -> None:
    found = problems(
        {"name": "first", "sed": 1, "dataset": ["owt", "owl"], "k": [], "layer": "abc", "task": "match"},
        {"seed": 1, "k": 16, "zip": {"k": [16, 32], "layer": [1, 2, 3]}, "exclude": [{"seed": 2, "site": 1}]},
        {"optimizer": {"lr": [1, 2]}, "zip": {"k": 16}, "exclude": {"k": 16}},
        {"name": "empty", "seed": [1], "exclude": [{"seed": 1}]},
        {"name": "empty", "seed": 1},
    )
    assert found == [
        "empty: two grids have this name",
        "first: unknown key sed (did you mean seed or sae?)",
        "first: dataset=owl: not one of domain, faithful, files, library_code, library_docs, mix, "
        "owt, pile, redpajama, stdlib_code, stdlib_docs, synthetic, tinystories (did you mean owt?)",
        "first: k: the list of values is empty",
        "first: layer=abc: must be a whole number, written in digits",
        "first: task cannot be swept: it belongs to the sweep as a whole",
        "grid 2: zip: the lists must be equally long: k has 2, layer has 3",
        "grid 2: k is both in the grid and in its zip",
        "grid 2: exclude: seed=2 is not in the grid, which has 1",
        "grid 2: exclude: the grid has no key site; it has seed, k, layer",
        "grid 3: optimizer: a mapping is no value; write nested keys with dots, as in optimizer.lr",
        "grid 3: zip must map keys to lists of values",
        "grid 3: exclude must be a list of mappings of keys to values",
        "empty: exclude leaves no point",
    ]


def test_a_key_advances_with_one_zip_only() -> None:
    found = problems({"zip": [{"k": [1, 2], "seed": [1, 2]}, {"k": [1, 2], "layer": [3, 4]}]})
    assert found == ["grid 1: zip: k is given twice"]


def test_several_zips_multiply() -> None:
    zips = [{"k": [16, 32], "layer": [8, 4]}, {"seed": [1, 2], "dictionary": [4, 8]}]
    assert [tuple(point.values()) for point in points({"data_seed": 0, "zip": zips})] == [
        (0, k, layer, seed, size) for k, layer in ((16, 8), (32, 4)) for seed, size in ((1, 4), (2, 8))
    ]


def test_a_grid_that_disagrees_with_common_is_named_with_both_values() -> None:
    found = problems({"seed": 1}, {"name": "b", "seed": [1, 2]}, common={"seed": [2, 1], "x": 1})
    assert found == [
        "common: unknown key x: see --help for all keys",
        "grid 1: seed=1, but common has seed=2,1",
        "b: seed=1,2, but common has seed=2,1",
    ]
    assert problems({"zip": {"seed": [1]}}, common={"seed": 2}) == ["grid 1: seed=1, but common has seed=2"]


def test_the_command_line_names_the_grid_and_exits_with_2(cli: Cli) -> None:
    result = cli("grids=[{name: row 1, layer: [x]}]", "common={fuse: false}")
    assert result.code == 2
    assert result.err.splitlines() == [
        "sae_sweep: common: fuse cannot be swept: it belongs to the sweep as a whole",
        "sae_sweep: row 1: layer=x: must be a whole number, written in digits",
    ]


def test_runs_know_their_grids_and_the_same_run_in_two_spellings_is_one(planned: Callable[..., Plan]) -> None:
    plan = planned(TWO_GRIDS)
    assert {name: run.grids for name, run in zip(names(plan), plan.runs, strict=True)} == {
        "owt_topk_x4_k16": ("size",),
        "owt_topk_x16_k16": ("size",),
        "tinystories_topk_x4_k16": ("size",),
        "tinystories_topk_x16_k16": ("size", "sparsity"),
        "tinystories_topk_x16_k32": ("sparsity",),
        "tinystories_jumprelu_x16_l0c0.004": ("grid 3",),
        "tinystories_jumprelu_x16_l0c0.0018": ("grid 3",),
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset=owt"], ["owt_topk_x4_k16", "owt_topk_x16_k16"]),
        # size never mentions k: its default counts; k means nothing to jumprelu, so no value selects it
        (["k=32"], ["tinystories_topk_x16_k32"]),
        (["k=16", "dataset=tinystories"], ["tinystories_topk_x4_k16", "tinystories_topk_x16_k16"]),
        (["architecture=jumprelu", "l0_coefficient=4e-3"], ["tinystories_jumprelu_x16_l0c0.004"]),
        (["dictionary=4", "dataset=tinystories,owt"], ["owt_topk_x4_k16", "tinystories_topk_x4_k16"]),
        # no grid mentions lr: it is set, and a comma list multiplies
        (["dataset=owt", "dictionary=4", "optimizer.lr=0.1,0.2"], ["owt_topk_x4_k16_s49_lr-0.1",
                                                                  "owt_topk_x4_k16_s49_lr-0.2"]),
    ],
)  # fmt: skip
def test_a_value_of_a_grids_key_narrows_the_union(
    planned: Callable[..., Plan], words: Sequence[str], expected: list[str]
) -> None:
    assert names(planned(TWO_GRIDS, *words)) == expected


def test_nested_keys_and_group_choices_narrow_too(planned: Callable[..., Plan]) -> None:
    grids = "grids=[{optimizer.lr: [1e-3, 1e-4], numerics: [modern, study]}]"
    plan = planned(grids, "optimizer.lr=0.001", "numerics=study")
    assert names(plan) == ["owt_topk_x16_k16_s49_study_lr-0.001"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dictionary=4,5,6"], ["dictionary=5: no run of the grids has it; they have 4, 16",
                                "dictionary=6: no run of the grids has it; they have 4, 16"]),
        (["dataset=pile", "k=17"], ["dataset=pile: no run of the grids has it; they have owt, tinystories",
                                    "k=17: no run of the grids has it; they have 16, 32"]),
        (["dataset=owt", "k=32,32"], ["no run of the grids has this combination: dataset=owt, k=32,32"]),
    ],
)  # fmt: skip
def test_what_the_grids_do_not_hold_is_named_with_what_they_hold(
    cli: Cli, words: Sequence[str], message: list[str]
) -> None:
    result = cli(TWO_GRIDS, *words)
    assert result.code == 2
    assert result.err.splitlines() == [f"sae_sweep: {line}" for line in message]


def test_a_key_without_meaning_to_all_grids_selects_nothing(cli: Cli) -> None:
    result = cli("grids=[{architecture: jumprelu, k: [16, 32]}]", "k=16")
    assert result.err == "sae_sweep: k=16: no run of the grids has it; k means nothing to them\n"


def test_a_narrowed_run_need_not_mind_the_others(planned: Callable[..., Plan]) -> None:
    assert names(planned("grids=[{layer: [8, 99]}]", "layer=8")) == ["owt_topk_x16_k16"]


def test_a_key_of_a_grid_without_meaning_to_any_of_its_runs_is_refused(cli: Cli) -> None:
    result = cli("grids=[{architecture: jumprelu, k: [16, 32]}, {architecture: topk}]")
    assert result.code == 2
    assert result.err == "sae_sweep: k means nothing to jumprelu: its key is l0_coefficient\n"


def test_a_value_that_only_another_choice_has_names_the_grid(cli: Cli) -> None:
    result = cli("grids=[{name: widths, architecture: [jumprelu, topk], architecture.bandwidth: 0.1}]")
    assert result.code == 2
    assert "sae_sweep: widths: " in result.err
    assert "bandwidth" in result.err


def test_composing_from_a_shared_start_is_what_hydra_composes(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naive twin: compose each run with Hydra, one composition per run."""
    loads = []

    def counted(self: ConfigLoaderImpl, config_name: str, overrides: list[str], **keys: Any) -> Any:
        loads.append(overrides)
        return load(self, config_name, overrides, **keys)

    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    fused = planned(TWO_GRIDS, "batch=512", "sweep=mine")
    # Hydra itself loads the command once; then a base and a reference for each of three choices
    assert len(loads) == 1 + 2 * 3
    words = {
        "owt_topk_x4_k16": ["dataset=owt", "dictionary=4"],
        "tinystories_topk_x16_k32": ["dataset=tinystories", "k=32"],
        "tinystories_jumprelu_x16_l0c0.004": [
            *("dataset=tinystories", "architecture=jumprelu", "l0_coefficient=0.004")
        ],
    }
    by_name = {run.name: run for run in fused.runs}
    for typed in words.values():
        (alone,) = planned(*typed, "batch=512", "sweep=mine").runs
        assert by_name[alone.name].config == alone.config
        assert by_name[alone.name].run_id == alone.run_id
