"""Starting from an SAE on disk: the same function, in the run's id by content, and refused in one line."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.config import ConfigError, InitConfig, ModelConfig, OptimizerConfig, RunConfig, SaeSweepError
from sae_sweep.saes import (
    SAE,
    Learner,
    evaluated_start,
    load_sae,
    save_sae,
    start_fingerprint,
    start_normalisation,
    start_problem,
    starting_decoder,
    starting_sae,
)
from sae_sweep.saes.architectures import BatchTopK
from sae_sweep.saes.build import build_objective
from tests.saes.foreign_files import (
    dictionary_folder,
    dictionary_state,
    sparsify_folder,
    study_folder,
    study_state,
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


def _fitting(path: Path, kind: str, found: SAE) -> RunConfig:
    """A config of the size and the k of an SAE."""
    k = getattr(found.architecture, "k", None)
    one = config(architecture(kind, **({"k": k} if k else {})), init=InitConfig(sae=str(path)))
    return dataclasses.replace(one, dictionary=found.d_sae // found.d_in)


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
        assert start.state_dict()[name].equal(value)
    assert starting_decoder(_config(path, kind), D_IN, D_SAE, "some-id").equal(sae.W_dec)


def test_seeds_that_draw_nothing_are_one_run(tmp_path: Path) -> None:
    _, path = _saved(tmp_path / "general", "topk")
    drawn, tuned = (_config(sae) for sae in (None, path))
    other = {"seed": drawn.seed + 1}
    assert dataclasses.replace(drawn, **other).run_id({}) != drawn.run_id({})
    assert dataclasses.replace(tuned, **other).run_id({}) == tuned.run_id({})
    unshared = dataclasses.replace(tuned, init=InitConfig(sae=path, shared=not tuned.init.shared))
    assert unshared.run_id({}) == tuned.run_id({})
    assert dataclasses.replace(tuned, data_seed=tuned.data_seed + 1).run_id({}) != tuned.run_id({})


def test_a_start_of_another_layer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sae, _ = _saved(tmp_path / "general", "topk")
    config = _config(str(tmp_path / "here"))
    for layer, name in ((config.layer, "here"), (config.layer + 1, "above")):
        save_sae(sae, tmp_path / name, metadata={"hook_name": f"blocks.{layer}.hook_resid_pre"})
        starting_sae(dataclasses.replace(config, init=InitConfig(sae=str(tmp_path / name))), D_IN, "x")
    (line,) = [record.getMessage() for record in caplog.records]
    above = f"init.sae={tmp_path / 'above'} was trained on layer {config.layer + 1}"
    assert line == f"{above}, and this run reads layer {config.layer}"


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
    drawn = _config(None).identity()
    assert _config(path).identity() == {**drawn, "seed": None, "init": {"b_dec": "zero"}}


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


def _saelens(folder: Path, kind: str, **keys: Any) -> str:
    """An SAE of SAELens, with decoder rows of norm 2."""
    sae, path = _saved(folder, kind)
    with torch.no_grad():
        sae.W_dec.mul_(2.0)
    save_sae(sae, folder, metadata={})
    _as_saelens(folder)
    file = folder / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return path


RAW = {"normalize_activations": "none"}
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


@pytest.mark.parametrize(
    ("keys", "normalisation", "problem"),
    [
        (RAW, "auto", None),
        (RAW, "expected_average_only_in", None),
        (RAW, "layer_norm", "has normalisation=none, not layer_norm: give that, or leave"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "none",
            "has normalisation=expected_average_only_in",
        ),
        ({}, "none", "has normalisation=layer_norm, not none"),
        ({**CENTRED}, "auto", None),
        ({**CENTRED, **RAW}, "none", "has normalisation=centred, not none"),
        (
            {**CENTRED, "normalize_activations": "constant_norm_rescale"},
            "auto",
            "centres residuals and normalises them",
        ),
    ],
)
def test_a_run_normalises_as_the_sae_or_the_line_says_which_key(
    tmp_path: Path, keys: dict[str, Any], normalisation: str, problem: str | None
) -> None:
    path = _saelens(tmp_path, "topk", **keys)
    one = _config(path, normalisation=normalisation)
    one = dataclasses.replace(one, model=ModelConfig(path="somewhere/unknown"))
    found = start_problem(one)
    assert (found is None) if problem is None else (problem in str(found))


def _unit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoder rows of norm 1, as trained TopK SAEs have them."""
    return {**state, "W_dec": torch.nn.functional.normalize(state["W_dec"])}


def _dictionary(folder: Path, name: str) -> None:
    dictionary_folder(folder, name, state=dictionary_state(name, unit="TopK" in name))


def _study(folder: Path, kind: str, unit_norm: bool) -> None:
    study_folder(folder, kind, state=_unit(study_state(kind)), input_unit_norm=unit_norm)


FOREIGN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "AutoEncoder": ("relu", functools.partial(_dictionary, name="AutoEncoder")),
    "AutoEncoderNew": ("relu", functools.partial(_dictionary, name="AutoEncoderNew")),
    "JumpReluAutoEncoder": ("jumprelu", functools.partial(_dictionary, name="JumpReluAutoEncoder")),
    "AutoEncoderTopK": ("topk", functools.partial(_dictionary, name="AutoEncoderTopK")),
    "BatchTopKSAE": ("batchtopk", functools.partial(_dictionary, name="BatchTopKSAE")),
    "BatchTopKSAE as jumprelu": ("jumprelu", functools.partial(_dictionary, name="BatchTopKSAE")),
    "MatryoshkaBatchTopKSAE": ("batchtopk", functools.partial(_dictionary, name="MatryoshkaBatchTopKSAE")),
    "sparsify": ("topk", lambda to: sparsify_folder(to, weights=_unit(sparsify_folder(to)))),
    "study vanilla": ("relu", functools.partial(_study, kind="vanilla", unit_norm=True)),
    "study jumprelu": ("jumprelu", functools.partial(_study, kind="jumprelu", unit_norm=False)),
    "study topk": ("topk", functools.partial(_study, kind="topk", unit_norm=False)),
    "SAELens centred": ("relu", functools.partial(_saelens, kind="relu", **RAW, **CENTRED)),
    **{
        f"SAELens {kind} {how}": (kind, functools.partial(_saelens, kind=kind, normalize_activations=how))
        for kind in ("relu", "jumprelu", "topk")
        for how in ("none", "constant_norm_rescale", "layer_norm")
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_fine_tuning_starts_at_the_foreign_sae_moves_and_resumes(tmp_path: Path, name: str) -> None:
    kind, write = FOREIGN[name]
    write(tmp_path)
    found = load_sae(tmp_path)
    one = _fitting(tmp_path, kind, found)
    x = sparse_batch(0, d_in=found.d_in)
    start, norms = starting_sae(one, found.d_in, "id"), found.W_dec.norm(dim=1)
    torch.testing.assert_close(start.encode(x), found.encode(x) * norms, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(start(x), found(x), rtol=1e-4, atol=1e-4)
    assert (found.encode(x) > 0).any()
    whole, resumed = Learner(start, one, "cpu"), Learner(starting_sae(one, found.d_in, "id"), one, "cpu")
    whole.step(x)
    assert not torch.allclose(start(x), found(x), rtol=1e-4, atol=1e-4)
    resumed.load_state(whole.state())
    for learner in (whole, resumed):
        learner.step(sparse_batch(1, d_in=found.d_in))
    end, other = whole.state(), resumed.state()
    assert all(torch.equal(end[key], other[key]) for key in end)


def test_a_batchtopk_of_the_study_goes_on_with_its_choice_per_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _study(tmp_path, "batchtopk", unit_norm=True)
    found, x = load_sae(tmp_path), sparse_batch(0, d_in=12)
    caplog.clear()
    one = _fitting(tmp_path, "batchtopk", found)
    start = starting_sae(one, 12, "id")
    assert not caplog.text
    output = build_objective(start, one)(start.normalise(x).x, 0).output
    torch.testing.assert_close(output.f, found.encode(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(evaluated_start(one, 12).encode(x), found.encode(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_evaluated_beside_what_it_starts_as(tmp_path: Path, kind: str) -> None:
    _, path = _saved(tmp_path / "general", kind)
    one, x = _config(path, kind), sparse_batch(0)
    assert torch.equal(evaluated_start(one, D_IN)(x), starting_sae(one, D_IN, "id")(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", ["modern", "study"])
def test_one_of_raw_residuals_goes_on_in_units_of_their_average_norm(
    tmp_path: Path, kind: str, numerics: str
) -> None:
    """A first step without a learning rate leaves the function as it was."""
    sae, path = _saved(tmp_path, kind)
    sae.normalisation = "none"
    with torch.no_grad():
        if numerics == "study" and kind.endswith("topk"):
            sae.b_enc.zero_()
    save_sae(sae, tmp_path, metadata={})
    still = OptimizerConfig(lr=1e-30)
    one = _config(path, kind, numerics=numerics, normalisation="expected_average_only_in", optimizer=still)
    start, x = starting_sae(one, D_IN, "id"), sparse_batch(0)
    torch.testing.assert_close(start(x), sae(x), rtol=1e-3, atol=1e-3)
    learner = Learner(start, one, "cpu")
    learner.step(x)
    torch.testing.assert_close(start.normalise(x).x.norm(dim=1).mean(), torch.tensor(D_IN**0.5))
    if isinstance(sae, BatchTopK):  # its threshold is that of the batch from then on
        lower = start.get_buffer("threshold").mul_(0.999)  # than the latent that it was
        sae.threshold.copy_(lower / start.get_buffer("input_scale"))
    torch.testing.assert_close(learner.finish().encode(x), sae.encode(x), rtol=1e-3, atol=1e-3)


def test_one_that_expects_an_average_norm_gets_it(tmp_path: Path) -> None:
    path = _saelens(tmp_path, "relu", normalize_activations="expected_average_only_in")
    one = _config(path, "relu", optimizer=OptimizerConfig(lr=1e-30))
    found, x = load_sae(path), sparse_batch(0)
    assert start_normalisation(path) == "expected_average_only_in"
    learner = Learner(starting_sae(one, D_IN, "id"), one, "cpu")
    learner.step(x)
    scale = D_IN**0.5 / x.norm(dim=1).mean()
    torch.testing.assert_close(learner.finish()(x), found(x * scale) / scale, rtol=1e-3, atol=1e-3)


def test_topk_of_uneven_rows_or_another_k_is_said_to_start_near(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sparsify_folder(tmp_path, weights=_unit(sparsify_folder(tmp_path)))
    one = _fitting(tmp_path, "topk", load_sae(tmp_path))
    starting_sae(one, 12, "id")
    assert not caplog.text
    starting_sae(dataclasses.replace(one, architecture=architecture("topk", k=5)), 12, "id")
    assert "has k=3, and this run k=5: it starts near that SAE" in caplog.text
    sparsify_folder(tmp_path)
    starting_sae(one, 12, "id")
    assert "and here 1, so topk chooses other features: it starts near that SAE" in caplog.text


def test_a_feature_that_decodes_to_nothing_is_dead_and_stays_finite(tmp_path: Path) -> None:
    sae, path = _saved(tmp_path, "jumprelu")
    with torch.no_grad():
        sae.W_dec[0] = 0
        sae.W_dec[1] = 0
        sae.W_enc[:, 1] = 0
        sae.get_parameter("threshold")[2:4] = 0
    save_sae(sae, tmp_path, metadata={})
    for numerics in ("modern", "study"):
        one, x = _config(path, "jumprelu", numerics=numerics), sparse_batch(0)
        learner = Learner(starting_sae(one, D_IN, "id"), one, "cpu")
        torch.testing.assert_close(learner.sae(x), sae(x), rtol=1e-4, atol=1e-4)
        learner.step(x)
        assert all(value.isfinite().all() for value in learner.state().values())


def test_one_that_reads_other_activations_is_refused(tmp_path: Path) -> None:
    _, path = _saved(tmp_path, "topk")
    save_sae(load_sae(path), tmp_path, metadata={"hook_name": "blocks.1.hook_mlp_out"})
    with pytest.raises(SaeSweepError, match=r"reads 'blocks\.1\.hook_mlp_out'"):
        start_problem(_config(path))


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
        ({"sae": " "}, "name a folder, or hf: and a name on the Hugging Face hub"),
    ],
)
def test_wrong_keys_are_one_line(init: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(architecture("topk"), init=InitConfig(**init))
    assert any(problem in line for line in caught.value.problems)
