"""Config: checks, identity, names, and round trips through files."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.config import (
    ARCHITECTURES,
    ActivationsConfig,
    CommandConfig,
    ConfigError,
    EmbeddedDataset,
    FilesDataset,
    HubDataset,
    InitConfig,
    JumpReLUConfig,
    LauncherConfig,
    MatchingConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    RunConfig,
    TopKConfig,
    flatten,
    run_from_dict,
)
from sae_sweep.config.swept import swept_keys
from sae_sweep.plan.naming import run_name

BASELINE = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset())


def changed(**values: object) -> RunConfig:
    return dataclasses.replace(BASELINE, **values)  # type: ignore[arg-type]


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(
            layer=12,
            tokens=10,
            architecture=TopKConfig(k=99_999),
            packing=PackingConfig(seq_len=1),
            init=InitConfig(b_dec="median"),
        )
    text = str(caught.value)
    assert "layer=12: gpt2-small has layers 0 to 11" in text
    assert "tokens=10 is below batch=4096" in text
    assert "k=99999 is above d_sae=12288: lower k or raise dictionary" in text
    assert "packing.seq_len=1: must be at least 4" in text
    assert "init.b_dec=median: not one of zero, mean, geometric_median" in text
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"dataset": HubDataset()}, "dataset.path is empty"),
        ({"dataset": FilesDataset()}, "dataset.path is empty"),
        ({"architecture": JumpReLUConfig(bandwidth=0)}, "architecture.bandwidth=0: must be above 0"),
        ({"site": "mlp"}, "site=mlp: not one of resid_pre"),
        ({"batch": 0}, "batch=0: must be at least 2"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_contradictions_are_named(part: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(**part)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sweep": "a/b"}, "must be a plain name"),
        ({"sweep": ".."}, "must be a plain name"),
        ({"action": "empty"}, "action=empty: not one of fill, list"),
        ({"task": "cache", "action": "remove"}, "action=remove needs stream=NAME"),
        ({"format": "xml"}, "format=xml: not one of text, json"),
        (
            {"launcher": LauncherConfig(kind="cloud")},
            "launcher.kind=cloud: not one of inprocess, local, slurm",
        ),
        ({"matching": MatchingConfig(threshold=2)}, "matching.threshold=2: must be between 0 and 1"),
    ],
)
def test_contradictions_of_a_command_are_named(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CommandConfig(**keys)  # type: ignore[arg-type]


def test_no_key_is_both_a_runs_and_a_commands() -> None:
    run, command = ({key.name for key in dataclasses.fields(cls)} for cls in (RunConfig, CommandConfig))
    assert not run & command


def test_k_may_equal_d_sae_but_not_exceed_it() -> None:
    assert changed(architecture=TopKConfig(k=12_288)).architecture.sparsity_label == "k12288"
    with pytest.raises(ConfigError):
        changed(architecture=TopKConfig(k=12_289))


@given(
    kind=st.sampled_from(sorted(ARCHITECTURES)),
    seed=st.integers(0, 2**31),
    tokens=st.integers(4096, 10**10),
    shared=st.booleans(),
)
def test_a_config_survives_the_disk(kind: str, seed: int, tokens: int, shared: bool) -> None:
    config = changed(
        architecture=ARCHITECTURES[kind](), seed=seed, tokens=tokens, init=InitConfig(shared=shared)
    )
    assert run_from_dict(config.as_dict()) == config


def test_a_config_of_the_first_version_is_read_without_its_commands_keys() -> None:
    plain = {
        **BASELINE.as_dict(),
        "k": 16,
        "l0_coefficient": None,
        "launcher": {"kind": "fused"},
        "task": "train",
    }
    assert run_from_dict(plain) == BASELINE


def test_an_unknown_key_on_disk_is_named() -> None:
    plain = BASELINE.as_dict()
    plain["optimizer"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match=r"optimizer\.momentum: unknown key"):
        run_from_dict(plain)


def test_run_id_follows_what_moves_the_weights_and_nothing_else() -> None:
    prints = {"corpus": "c", "model": "m"}
    base = BASELINE.run_id(prints)
    assert changed(seed=1).run_id(prints) != base
    assert changed(architecture=TopKConfig(k=17)).run_id(prints) != base
    assert BASELINE.run_id({"corpus": "other", "model": "m"}) != base
    assert changed(device="cpu").run_id(prints) == base
    assert changed(activations=ActivationsConfig(source="cache")).run_id(prints) == base
    assert changed(backend="reference").run_id(prints) != base
    assert changed(model=ModelConfig(dtype="float32")).run_id(prints) != base


def test_a_key_that_one_run_leaves_out_tells_it_from_the_others() -> None:
    for key, changes in (
        ("optimizer.tilt", {"optimizer": OptimizerConfig(tilt=10.0)}),
        ("init.sae", {"init": InitConfig(sae="there")}),
        ("normalisation", {"normalisation": "none"}),
    ):
        usual, other = swept_keys([BASELINE, changed(**changes)])
        assert [*usual] == [*other] == [key]
        assert usual[key] != other[key]


def test_how_text_and_model_are_spelled_and_called_is_no_part_of_the_id() -> None:
    prints = {"corpus": "c", "model": "m"}
    text = [FilesDataset(path=path, name=name) for path in ("a", "./a/", "/w/a") for name in ("x", "y")]
    assert len({changed(dataset=one).run_id(prints) for one in text}) == 1
    model = [ModelConfig(path=path, name=name) for path in ("gpt2", "/w/gpt2") for name in (None, "mine")]
    assert len({changed(model=one).run_id(prints) for one in model}) == 1
    assert changed(dataset=FilesDataset(path="a", text_key="body")).run_id(prints) not in {
        changed(dataset=one).run_id(prints) for one in text
    }


def test_runs_share_a_stream_across_layers_seeds_and_sizes_but_not_data() -> None:
    stream = BASELINE.stream_identity()
    assert changed(layer=3, seed=1, dictionary=4, tokens=10**6).stream_identity() == stream
    assert changed(data_seed=1).stream_identity() != stream
    assert changed(dataset=FilesDataset(path="a", text_key="body")).stream_identity() != stream
    assert changed(shuffle_seed=0).stream_identity() == stream  # null means data_seed, which is 0


def test_runs_on_other_devices_or_in_other_lm_batches_share_no_pass() -> None:
    shared = BASELINE.pass_identity()
    assert changed(seed=1, backend="reference").pass_identity() == shared
    assert changed(device="cpu").pass_identity() != shared
    assert changed(activations=ActivationsConfig(lm_batch=8)).pass_identity() != shared


def test_names_show_every_difference_that_moves_the_weights() -> None:
    name = run_name(changed(tokens=2_000_000, init=InitConfig(shared=False)), BASELINE)
    assert name == "gpt2-small_L8_stdlib_docs_topk_x16_k16_s49_tokens-2e6_shared-false"
    assert run_name(BASELINE, BASELINE) == "gpt2-small_L8_stdlib_docs_topk_x16_k16_s49"


@given(
    st.dictionaries(
        st.sampled_from(["tokens", "batch", "data_seed", "shuffle_seed"]), st.integers(4096, 10**9)
    )
)
def test_two_runs_that_differ_have_two_names(values: dict[str, int]) -> None:
    values = {**values, "tokens": max(values.get("tokens", 10**9), values.get("batch", 0))}
    config = changed(**values)
    same = run_name(config, BASELINE) == run_name(BASELINE, BASELINE)
    assert same == (config.identity() == BASELINE.identity())


def test_a_long_name_is_cut_and_stays_unique() -> None:
    long = ModelConfig(path="some/" + "x" * 150)
    names = {run_name(changed(model=long, data_seed=seed), BASELINE) for seed in (1, 2)}
    assert len(names) == 2
    assert all(len(name) <= 120 for name in names)


def test_the_shape_of_a_local_model_is_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text('{"n_layer": 3, "n_embd": 32}')
    model = ModelConfig(path=str(tmp_path))
    assert model.shape == (3, 32)
    assert model.label == tmp_path.stem
    with pytest.raises(ConfigError, match="has layers 0 to 2"):
        changed(model=model, layer=3)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


@pytest.mark.parametrize(("path", "context"), [("gpt2", 1024), ("bundled:gpt2-pico", 256), (None, 48)])
def test_a_context_beyond_the_models_is_refused(tmp_path, path, context) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text('{"n_layer": 12, "n_embd": 32, "max_position_embeddings": 48}')
    model = ModelConfig(path=path or str(tmp_path), name="mine")
    changed(model=model, packing=PackingConfig(seq_len=context))
    with pytest.raises(ConfigError, match=f"seq_len={context + 1}: mine reads at most {context} tokens"):
        changed(model=model, packing=PackingConfig(seq_len=context + 1))
