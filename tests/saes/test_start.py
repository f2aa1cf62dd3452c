"""Starting from an SAE on disk: the same function, in the run's id by content, and refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import ConfigError, InitConfig, ModelConfig, RunConfig, SaeSweepError
from sae_sweep.saes import (
    SAE,
    load_sae,
    save_sae,
    start_fingerprint,
    start_problem,
    starting_decoder,
    starting_sae,
)
from tests.saes.helpers import D_IN, D_SAE, architecture, config, fresh_sae, sparse_batch

KINDS = ("topk", "batchtopk", "jumprelu", "relu")


def _saved(folder: Path, kind: str, seed: int = 8) -> tuple[SAE, str]:
    """An SAE with biases and thresholds of its own, on disk."""
    sae = fresh_sae(architecture(kind), "modern", seed=seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for name, value in sae.state_dict().items():
            if name.startswith(("b_", "threshold")):
                value.copy_(0.3 * torch.rand(value.shape, generator=generator))
    save_sae(sae, folder, metadata={})
    return sae, str(folder)


def _config(path: str | None, kind: str = "topk", **keys: Any) -> RunConfig:
    return config(architecture(kind), init=InitConfig(sae=path), **keys)


@pytest.mark.parametrize("path", ["runs/general", "runs/general/", "runs/general/sae"])
def test_a_start_is_called_by_its_run(path: str) -> None:
    assert InitConfig(sae=path).label == "general"
    assert InitConfig().label == ""


def _as_saelens(folder: Path) -> None:
    """Take what says that the SAE is ours from its cfg.json."""
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"].pop("sae_sweep")
    (folder / "cfg.json").write_text(json.dumps(cfg))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_as_the_sae_that_is_on_disk(tmp_path: Path, kind: str) -> None:
    sae, path = _saved(tmp_path / "general", kind)
    start = starting_sae(_config(path, kind), D_IN, "some-id")
    assert start.architecture == sae.architecture
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], value)
    assert starting_decoder(_config(path, kind), D_IN, D_SAE, "some-id").equal(sae.W_dec)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu"])
def test_one_of_another_library_computes_the_same_from_unit_rows(tmp_path: Path, kind: str) -> None:
    """Also where it subtracts b_dec from its input and ours does not, or the reverse."""
    sae, path = _saved(tmp_path / "general", kind)
    _as_saelens(tmp_path / "general")
    file = tmp_path / "general" / "cfg.json"
    cfg = json.loads(file.read_text())
    file.write_text(json.dumps({**cfg, "apply_b_dec_to_input": not cfg["apply_b_dec_to_input"]}))
    foreign, start = load_sae(path), starting_sae(_config(path, kind), D_IN, "some-id")
    x = sparse_batch(0)
    torch.testing.assert_close(start(x), foreign(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(start(x), sae(x))  # the flag says that it is another
    torch.testing.assert_close(start.W_dec.norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize("kind", ["jumprelu", "relu"])
def test_longer_decoder_rows_become_larger_latents(tmp_path: Path, kind: str) -> None:
    sae, path = _saved(tmp_path / "general", kind)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        sae.W_dec[0] = 0
    save_sae(sae, Path(path), metadata={})
    start, x = starting_sae(_config(path, kind), D_IN, "some-id"), sparse_batch(0)
    torch.testing.assert_close(start(x), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(start.W_dec[1:].norm(dim=1), torch.ones(D_SAE - 1))


def test_its_own_start_is_the_sae_and_new_features_are_those_that_left_it(tmp_path: Path) -> None:
    sae, path = _saved(tmp_path / "general", "topk")
    moved = sae.W_dec.detach().clone()
    moved[:16] = -moved[:16]
    assert match_to_own_start(sae.W_dec, _config(path), "some-id", 0.7) == 1
    expected = (
        (torch.nn.functional.cosine_similarity(moved[:, None], sae.W_dec[None], dim=2).amax(1) > 0.7)
        .float()
        .mean()
    )
    assert match_to_own_start(moved, _config(path), "some-id", 0.7) == pytest.approx(expected.item())


def test_an_sae_is_its_content_wherever_it_is(tmp_path: Path) -> None:
    _, path = _saved(tmp_path / "one", "topk")
    shutil.copytree(path, tmp_path / "run" / "sae")
    _, other = _saved(tmp_path / "other", "topk", seed=9)
    print_ = start_fingerprint(path)
    assert start_fingerprint(str(tmp_path / "run")) == print_ != start_fingerprint(other)
    prints = {"corpus": "a", "model": "b"}
    ids = {one: _config(one).run_id({**prints, "start": start_fingerprint(one)}) for one in (path, other)}
    assert len({*ids.values(), _config(None).run_id(prints)}) == 3
    assert _config(str(tmp_path / "run")).run_id({**prints, "start": print_}) == ids[path]
    assert _config(path).identity() == _config(None).identity()


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
    _, path = _saved(tmp_path / "general", "topk")
    model = keys.pop("model", ModelConfig(path="somewhere/unknown"))
    dictionary = keys.pop("dictionary", 4)
    one = dataclasses.replace(_config(path, **keys), model=model, dictionary=dictionary)
    assert start_problem(one) == f"init.sae={path} {problem}"
    with pytest.raises(SaeSweepError):
        starting_sae(one, 128 if model.shape else D_IN, "some-id")


def test_one_that_reads_other_inputs_is_refused(tmp_path: Path) -> None:
    _, path = _saved(tmp_path / "general", "topk")
    _as_saelens(tmp_path / "general")
    file = tmp_path / "general" / "cfg.json"
    file.write_text(file.read_text().replace("layer_norm", "none"))
    one = dataclasses.replace(_config(path), model=ModelConfig(path="somewhere/unknown"))
    assert "reads tokens normalised by 'none', and SAEs here by layer_norm" in str(start_problem(one))


def test_a_damaged_or_missing_one_is_one_line(tmp_path: Path) -> None:
    _, path = _saved(tmp_path / "general", "topk")
    weights = tmp_path / "general" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5] + b"12345")
    for damaged in (path, str(tmp_path / "nothing")):
        for use in (start_fingerprint, lambda path: start_problem(_config(path))):
            with pytest.raises(SaeSweepError) as caught:
                use(damaged)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("init", "problem"),
    [
        ({"sae": "a", "b_dec": "mean"}, "init.b_dec=mean: the SAE of init.sae has a decoder bias of its own"),
        ({"sae": "hf:someone/saes"}, "name a folder; one on the hub is downloaded with hf download"),
        ({"sae": " "}, "name a folder"),
    ],
)
def test_wrong_keys_are_one_line(init: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(architecture("topk"), init=InitConfig(**init))
    assert any(problem in line for line in caught.value.problems)
