"""Input spaces: what each does to a token; every architecture trains, resumes and is saved in each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_sweep.config import ConfigError, OptimizerConfig, RunConfig, SaeSweepError
from sae_sweep.config.run import NORMALISATIONS
from sae_sweep.saes import SAE, Learner, build_sae, load_sae, save_sae, starting_sae
from tests.saes.helpers import BATCH, D_IN, D_SAE, KINDS, NUMERICS, architecture, config, sparse_batch

OTHERS = NORMALISATIONS[1:]
AVERAGE = "expected_average_only_in"


def _learner(kind: str, how: str, numerics: str = "modern", **keys: Any) -> Learner:
    one = config(architecture(kind), numerics, normalisation=how, **keys)
    return Learner(starting_sae(one, D_IN, "some-id"), one, "cpu")


def _input(step: int) -> Tensor:
    """A batch of which a coefficient and a threshold for inputs of unit variance make sense."""
    return sparse_batch(step) / 4


def _moved(sae: SAE) -> SAE:
    """An SAE with biases and thresholds that differ from 0."""
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            if name.startswith(("b_", "threshold")):
                value.add_(0.3 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
    return sae


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_a_normalisation_is_what_it_is_called_and_is_undone(how: str) -> None:
    one, x = _learner("topk", how), sparse_batch(0)
    if how == AVERAGE:
        one.step(x)
    xn = one.sae.normalise(x)
    torch.testing.assert_close(xn.undo(xn.x), x, rtol=1e-4, atol=1e-4)
    facts = {
        "layer_norm": lambda: (xn.x.std(dim=1), torch.ones(BATCH)),
        "none": lambda: (xn.x, x),
        "centred": lambda: (xn.x, x - x.mean(dim=1, keepdim=True)),
        "constant_norm_rescale": lambda: (xn.x.norm(dim=1), torch.full((BATCH,), D_IN**0.5)),
        AVERAGE: lambda: (xn.x, x * D_IN**0.5 / x.norm(dim=1).mean()),
    }
    torch.testing.assert_close(*facts[how](), rtol=1e-4, atol=1e-4)
    assert one.sae.normalise(torch.zeros(2, D_IN)).x.isfinite().all()


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_learns_in_every_space(kind: str, how: str) -> None:
    one = _learner(kind, how, steps=40, optimizer=OptimizerConfig(lr=1e-2))
    metrics = [one.step(_input(step)) for step in range(40)]
    assert metrics[-1]["mse"] < 0.5 * max(float(m["mse"]) for m in metrics)
    assert metrics[-1]["explained_variance"] > 0.5
    x, sae = _input(40), one.finish()
    error = (x - sae(x)).square().mean() / (x - x.mean(dim=0)).square().mean()
    assert 1 - error > 0.4  # raw residuals are explained, too


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("topk", {}),
        ("batchtopk", {}),
        ("relu", {"l1_coefficient": (0.05, 1)}),
        ("jumprelu", {"l0_coefficient": (0.02, 2), "bandwidth": (0.1, 1), "initial_threshold": (0.8, 1)}),
    ],
)
def test_keys_are_in_the_units_of_raw_inputs(kind: str, keys: dict[str, tuple[float, int]]) -> None:
    """Inputs twice as large have the same loss, but for its unit, with the keys scaled as the docs say."""
    x, factor = _input(0), 2.0
    found = []
    for scale in (1.0, factor):
        scaled = {key: value * scale**power for key, (value, power) in keys.items()}
        scaled |= {"warmup_fraction": 0.0} if keys else {}
        tilted = OptimizerConfig(tilt=0.5 / scale**2)
        one = config(architecture(kind, **scaled), normalisation="none", optimizer=tilted)
        found.append(Learner(starting_sae(one, D_IN, "id"), one, "cpu").step(x * scale))
    torch.testing.assert_close(found[1]["loss"], factor**2 * found[0]["loss"], rtol=1e-4, atol=1e-5)
    assert found[1]["explained_variance"] == pytest.approx(float(found[0]["explained_variance"]), rel=1e-3)


def test_a_config_of_another_space_than_the_saes_is_refused() -> None:
    one = config(architecture("topk"), normalisation="none")
    with pytest.raises(SaeSweepError, match="this SAE has normalisation=layer_norm, not none"):
        Learner(build_sae(one.architecture, D_IN, D_SAE, seed=1, numerics="modern"), one, "cpu")


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_formulas_agree_in_every_space(kind: str, how: str) -> None:
    both = [_learner(kind, how, backend=backend) for backend in ("reference", "auto")]
    for step in range(3):
        ours, theirs = (one.step(_input(step)) for one in both)
        for name in ("loss", "mse", "l0"):
            torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 3])
def test_a_resumed_run_has_the_factor_of_its_first_batch(kind: str, cut: int) -> None:
    whole, resumed = _learner(kind, AVERAGE), _learner(kind, AVERAGE)
    for step in range(cut):
        whole.step(_input(step))
    resumed.load_state(whole.state())
    for step in range(cut, 6):
        whole.step(_input(step))
        resumed.step(_input(step))
    end, other = whole.state(), resumed.state()
    assert end.keys() == other.keys()
    assert all(torch.equal(end[name], other[name]) for name in end)
    assert end["objective.sae.input_scale"] > 0
    with pytest.raises(SaeSweepError, match="does not fit this SAE"):
        _learner(kind, "none").load_state(end)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numerics", NUMERICS)
def test_the_factor_goes_into_the_weights_and_the_sae_computes_the_same(kind: str, numerics: str) -> None:
    one = _learner(kind, AVERAGE, numerics)
    one.step(_input(0))
    sae, x = _moved(one.sae), _input(1)
    assert sae.input_scale is not None
    scale, f, out = float(sae.input_scale), sae.encode(x), sae(x)
    torch.testing.assert_close(sae.decode(f), out, rtol=1e-4, atol=1e-4)
    with pytest.raises(SaeSweepError, match=r"in training.*finish\(\)"):
        save_sae(sae, Path("never"), metadata={})
    assert one.finish() is sae
    assert (sae.normalisation, sae.input_scale) == ("none", None)
    torch.testing.assert_close(sae.encode(x) * scale, f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), out, rtol=1e-4, atol=1e-4)
    with pytest.raises(SaeSweepError, match="none has no factor"):
        sae.scale_inputs(1.0)


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_say_the_space_to_us_and_to_saelens(tmp_path: Path, kind: str, how: str) -> None:
    one, x = _learner(kind, how), _input(1)
    one.step(_input(0))
    sae = _moved(one.finish())
    save_sae(sae, tmp_path / "sae", metadata={"hook_name": "blocks.1.hook_resid_pre"})
    ours = load_sae(tmp_path)
    assert ours.normalisation == sae.normalisation == {AVERAGE: "none"}.get(how, how)
    assert ours(x).equal(sae(x))
    file = tmp_path / "sae" / "cfg.json"
    cfg = json.loads(file.read_text())
    assert ("normalisation" in cfg["metadata"].pop("sae_sweep")) == (how != "layer_norm")
    file.write_text(json.dumps(cfg))  # as if SAELens had written it
    theirs = load_sae(tmp_path)
    assert type(theirs) is not type(ours)
    torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-4, atol=1e-4)


def test_a_space_that_was_not_written_is_noticed(tmp_path: Path) -> None:
    save_sae(_learner("topk", "centred").sae, tmp_path, metadata={})
    file = tmp_path / "cfg.json"
    for other in ('"none"', '"layer_norm"', f'"{AVERAGE}"', '"odd"', "[]"):
        file_text = file.read_text()
        file.write_text(file_text.replace('"normalisation": "centred"', f'"normalisation": {other}'))
        with pytest.raises(SaeSweepError) as caught:
            load_sae(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_text(file_text)
    assert load_sae(tmp_path).normalisation == "centred"


def test_a_space_is_part_of_a_runs_id_and_the_usual_one_leaves_ids_as_they_were() -> None:
    ids = {
        how: config(architecture("topk"), normalisation=how).run_id({}) for how in ("auto", *NORMALISATIONS)
    }
    assert ids["auto"] == ids["layer_norm"]
    assert len(set(ids.values())) == len(NORMALISATIONS)
    assert "normalisation" not in RunConfig().identity()
    with pytest.raises(ConfigError, match="normalisation=odd: not one of auto, layer_norm, none, centred"):
        config(architecture("topk"), normalisation="odd")
