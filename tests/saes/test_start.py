"""Starting from an SAE on disk: the same function, in the run's id by content, and refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import ConfigError, InitConfig, ModelConfig, SaeSweepError, TopKConfig
from sae_sweep.saes import (
    build_sae,
    evaluated_start,
    load_sae,
    sae_fingerprint,
    save_sae,
    start_fingerprint,
    start_problem,
    starting_decoder,
    starting_sae,
)
from tests.saes.helpers import D_IN, D_SAE, architecture, config, sparse_batch
from tests.saes.starts import as_saelens, saved, start_config

KINDS = ("topk", "batchtopk", "jumprelu", "relu")


@pytest.mark.parametrize("path", ["runs/general", "runs/general/", "runs/general/sae"])
def test_a_start_is_called_by_its_run(path: str) -> None:
    assert InitConfig(sae=path).label == "general"
    assert InitConfig().label == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_as_the_sae_that_is_on_disk(tmp_path: Path, kind: str) -> None:
    sae, path = saved(tmp_path / "general", kind)
    start = starting_sae(start_config(path, kind), D_IN, "some-id")
    assert start.architecture == sae.architecture
    for name, value in sae.state_dict().items():
        assert start.state_dict()[name].equal(value)
    assert starting_decoder(start_config(path, kind), D_IN, D_SAE, "some-id").equal(sae.W_dec)


def test_seeds_that_draw_nothing_are_one_run(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "general", "topk")
    drawn, tuned = (start_config(sae) for sae in (None, path))
    other = {"seed": drawn.seed + 1}
    assert dataclasses.replace(drawn, **other).run_id({}) != drawn.run_id({})
    assert dataclasses.replace(tuned, **other).run_id({}) == tuned.run_id({})
    unshared = dataclasses.replace(tuned, init=InitConfig(sae=path, shared=not tuned.init.shared))
    assert unshared.run_id({}) == tuned.run_id({})
    assert dataclasses.replace(tuned, data_seed=tuned.data_seed + 1).run_id({}) != tuned.run_id({})


def test_a_start_of_another_layer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sae, _ = saved(tmp_path / "general", "topk")
    config = start_config(str(tmp_path / "here"))
    for layer, name in ((config.layer, "here"), (config.layer + 1, "above")):
        save_sae(sae, tmp_path / name, metadata={"hook_name": f"blocks.{layer}.hook_resid_pre"})
        starting_sae(dataclasses.replace(config, init=InitConfig(sae=str(tmp_path / name))), D_IN, "x")
    (line,) = [record.getMessage() for record in caplog.records]
    above = f"init.sae={tmp_path / 'above'} was trained on layer {config.layer + 1}"
    assert line == f"{above}, and this run reads layer {config.layer}"


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu"])
def test_one_of_another_library_computes_the_same_from_unit_rows(tmp_path: Path, kind: str) -> None:
    """Also where it subtracts b_dec from its input and ours does not, or the reverse."""
    sae, path = saved(tmp_path / "general", kind)
    as_saelens(tmp_path / "general")
    file = tmp_path / "general" / "cfg.json"
    cfg = json.loads(file.read_text())
    file.write_text(json.dumps({**cfg, "apply_b_dec_to_input": not cfg["apply_b_dec_to_input"]}))
    foreign, start = load_sae(path), starting_sae(start_config(path, kind), D_IN, "some-id")
    x = sparse_batch(0)
    torch.testing.assert_close(start(x), foreign(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(start(x), sae(x))  # the flag says that it is another
    torch.testing.assert_close(start.W_dec.norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize("kind", ["jumprelu", "relu"])
def test_longer_decoder_rows_become_larger_latents(tmp_path: Path, kind: str) -> None:
    sae, path = saved(tmp_path / "general", kind)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        sae.W_dec[0] = 0
    save_sae(sae, Path(path), metadata={})
    start, x = starting_sae(start_config(path, kind), D_IN, "some-id"), sparse_batch(0)
    torch.testing.assert_close(start(x), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(start.W_dec[1:].norm(dim=1), torch.ones(D_SAE - 1))


def test_its_own_start_is_the_sae_and_new_features_are_those_that_left_it(tmp_path: Path) -> None:
    sae, path = saved(tmp_path / "general", "topk")
    moved = sae.W_dec.detach().clone()
    moved[:16] = -moved[:16]
    assert match_to_own_start(sae.W_dec, start_config(path), "some-id", 0.7) == 1
    expected = (
        (torch.nn.functional.cosine_similarity(moved[:, None], sae.W_dec[None], dim=2).amax(1) > 0.7)
        .float()
        .mean()
    )
    assert match_to_own_start(moved, start_config(path), "some-id", 0.7) == pytest.approx(expected.item())


def test_an_sae_is_also_how_it_computes() -> None:
    ways = [("modern", "layer_norm"), ("study", "layer_norm"), ("modern", "none")]
    prints = {
        sae_fingerprint(
            build_sae(TopKConfig(k=k), 8, 16, seed=1, numerics=numerics, normalisation=normalisation)
        )
        for k in (2, 4)
        for numerics, normalisation in ways
    }
    assert len(prints) == 6


def test_an_sae_is_its_content_wherever_it_is(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "one", "topk")
    shutil.copytree(path, tmp_path / "run" / "sae")
    _, other = saved(tmp_path / "other", "topk", seed=9)
    print_ = start_fingerprint(path)
    assert start_fingerprint(str(tmp_path / "run")) == print_ != start_fingerprint(other)
    prints = {"corpus": "a", "model": "b"}
    ids = {
        one: start_config(one).run_id({**prints, "start": start_fingerprint(one)}) for one in (path, other)
    }
    assert len({*ids.values(), start_config(None).run_id(prints)}) == 3
    assert start_config(str(tmp_path / "run")).run_id({**prints, "start": print_}) == ids[path]
    drawn = start_config(None).identity()
    assert start_config(path).identity() == {**drawn, "seed": None, "init": {"b_dec": "zero"}}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"kind": "relu"}, "is a topk SAE, and architecture=relu computes something else"),
        ({"dictionary": 8}, "has 64 features: dictionary=4 fits it, not dictionary=8"),
        ({"model": ModelConfig(path="bundled:gpt2-pico")}, "has d_in=16, and gpt2-pico has 128"),
        ({"numerics": "study"}, "has an encoder bias, which topk has not with numerics=study"),
    ],
)
def test_one_that_does_not_fit_is_one_line(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    _, path = saved(tmp_path / "general", "topk")
    model = keys.pop("model", ModelConfig(path="somewhere/unknown"))
    dictionary = keys.pop("dictionary", 4)
    one = dataclasses.replace(start_config(path, **keys), model=model, dictionary=dictionary)
    assert start_problem(one) == f"init.sae={path} {problem}"
    with pytest.raises(SaeSweepError):
        starting_sae(one, 128 if model.shape else D_IN, "some-id")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_evaluated_beside_what_it_starts_as(tmp_path: Path, kind: str) -> None:
    _, path = saved(tmp_path / "general", kind)
    one, x = start_config(path, kind), sparse_batch(0)
    assert torch.equal(evaluated_start(one, D_IN)(x), starting_sae(one, D_IN, "id")(x))


def test_one_that_reads_other_activations_is_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "topk")
    save_sae(load_sae(path), tmp_path, metadata={"hook_name": "blocks.1.hook_mlp_out"})
    with pytest.raises(SaeSweepError, match=r"reads 'blocks\.1\.hook_mlp_out'"):
        start_problem(start_config(path))


def test_a_damaged_or_missing_one_is_one_line(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "general", "topk")
    weights = tmp_path / "general" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5] + b"12345")
    for damaged in (path, str(tmp_path / "nothing")):
        for use in (start_fingerprint, lambda path: start_problem(start_config(path))):
            with pytest.raises(SaeSweepError) as caught:
                use(damaged)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("init", "problem"),
    [
        ({"sae": "a", "b_dec": "mean"}, "init.b_dec=mean: the SAE of init.sae has a decoder bias of its own"),
        ({"sae": " "}, "name a folder, or hf: and a name on the Hugging Face hub"),
    ],
)
def test_wrong_keys_are_one_line(init: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(architecture("topk"), init=InitConfig(**init))
    assert any(problem in line for line in caught.value.problems)
