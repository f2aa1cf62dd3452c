"""Starting from SAEs of other libraries, and in other input spaces: the same function, or said to be near."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_sweep.config import ModelConfig, OptimizerConfig
from sae_sweep.saes import (
    Learner,
    evaluated_start,
    load_sae,
    save_sae,
    start_normalisation,
    start_problem,
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
from tests.saes.helpers import D_IN, architecture, sparse_batch
from tests.saes.starts import as_saelens, fitting, saved, start_config

KINDS = ("topk", "batchtopk", "jumprelu", "relu")


def _saelens(folder: Path, kind: str, **keys: Any) -> str:
    """An SAE of SAELens, with decoder rows of norm 2."""
    sae, path = saved(folder, kind)
    with torch.no_grad():
        sae.W_dec.mul_(2.0)
    save_sae(sae, folder, metadata={})
    as_saelens(folder)
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
    one = start_config(path, normalisation=normalisation)
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
    one = fitting(tmp_path, kind, found)
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
    one = fitting(tmp_path, "batchtopk", found)
    start = starting_sae(one, 12, "id")
    assert not caplog.text
    output = build_objective(start, one)(start.normalise(x).x, 0).output
    torch.testing.assert_close(output.f, found.encode(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(evaluated_start(one, 12).encode(x), found.encode(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", ["modern", "study"])
def test_one_of_raw_residuals_goes_on_in_units_of_their_average_norm(
    tmp_path: Path, kind: str, numerics: str
) -> None:
    """A first step without a learning rate leaves the function as it was."""
    sae, path = saved(tmp_path, kind)
    sae.normalisation = "none"
    with torch.no_grad():
        if numerics == "study" and kind.endswith("topk"):
            sae.b_enc.zero_()
    save_sae(sae, tmp_path, metadata={})
    still = OptimizerConfig(lr=1e-30)
    one = start_config(
        path, kind, numerics=numerics, normalisation="expected_average_only_in", optimizer=still
    )
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
    one = start_config(path, "relu", optimizer=OptimizerConfig(lr=1e-30))
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
    one = fitting(tmp_path, "topk", load_sae(tmp_path))
    starting_sae(one, 12, "id")
    assert not caplog.text
    starting_sae(dataclasses.replace(one, architecture=architecture("topk", k=5)), 12, "id")
    assert "has k=3, and this run k=5: it starts near that SAE" in caplog.text
    sparsify_folder(tmp_path)
    starting_sae(one, 12, "id")
    assert "and here 1, so topk chooses other features: it starts near that SAE" in caplog.text


def test_a_feature_that_decodes_to_nothing_is_dead_and_stays_finite(tmp_path: Path) -> None:
    sae, path = saved(tmp_path, "jumprelu")
    with torch.no_grad():
        sae.W_dec[0] = 0
        sae.W_dec[1] = 0
        sae.W_enc[:, 1] = 0
        sae.get_parameter("threshold")[2:4] = 0
    save_sae(sae, tmp_path, metadata={})
    for numerics in ("modern", "study"):
        one, x = start_config(path, "jumprelu", numerics=numerics), sparse_batch(0)
        learner = Learner(starting_sae(one, D_IN, "id"), one, "cpu")
        torch.testing.assert_close(learner.sae(x), sae(x), rtol=1e-4, atol=1e-4)
        learner.step(x)
        assert all(value.isfinite().all() for value in learner.state().values())
