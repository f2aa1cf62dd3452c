"""Every statistic of a pass, against naive ones on gpt2-pico that hold everything; and parts, however cut."""

import argparse
import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_sweep.activations import LanguageModel, load_language_model
from sae_sweep.analysis import features as features_module
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.cofiring import partners
from sae_sweep.analysis.contexts import Window
from sae_sweep.analysis.features import (
    FeatureAnalysis,
    Kept,
    PositionAnalysis,
    Subject,
    Text,
    analyse_features,
    analyse_positions,
)
from sae_sweep.analysis.firing import columns
from sae_sweep.config import JumpReLUConfig, ModelConfig, TopKConfig
from sae_sweep.saes import SAE, build_sae
from tests.analysis.test_features import VOCABULARY, D, TinyLM

N, SEQ, LAYER, D_SAE = 12, 48, 3, 192
DECILES = [tenth / 10 for tenth in range(1, 10)]
KEPT = Kept(top=3, sample=20, window=Window(3, 2), seed=4)


def by_position(analysis: PositionAnalysis) -> dict[str, torch.Tensor]:
    """All that is known by position."""
    found = {f"position {name}": part for name, part in columns(analysis.firing.by_position()).items()}
    found |= {f"special {name}": part for name, part in columns(analysis.special.statistics()).items()}
    return found | {name: getattr(analysis, name).means for name in ("mse", "l1", "ce_clean", "ce_sae")}


def everything(analysis: FeatureAnalysis) -> dict[str, torch.Tensor]:
    """All that a pass finds."""
    deciles = analysis.quantiles.quantiles(DECILES)
    found = by_position(analysis) | columns(analysis.firing.by_feature()) | {"deciles": deciles}
    found["top token"], found["top token share"] = analysis.token_sums.shares()
    sample = analysis.sample.by_decile(deciles, KEPT.per_decile)
    for kind, part in (
        ("tokens", analysis.token_sums.by_mean(3, 2)),
        ("top", analysis.top.excerpts()),
        ("sample", sample),
        ("partners", partners(analysis.codes, 4)),
    ):
        found |= {f"{kind} {name}": torch.as_tensor(value) for name, value in part._asdict().items()}
    for name in ("offsets", "features", "values", "positions", "sequences"):
        found[f"codes {name}"] = getattr(analysis.codes, name)
    return found


class Naive:
    """The same, from dense latents of the whole text in float64."""

    def __init__(self, lm: LanguageModel, sae: SAE, ids: torch.Tensor, keep: torch.Tensor) -> None:
        x = lm.residuals(ids, [LAYER])[LAYER]
        inputs, f = sae.normalise(x[keep].float()), torch.zeros(*ids.shape, D_SAE)
        f[keep], f[~keep] = sae.encode(x[keep].float()), sae.encode(x[~keep].float())
        out = sae.decode_normalised(f[keep])
        spliced = x.clone()
        spliced[keep] = inputs.undo(out)
        self.ids, self.keep, self.signed = ids.numpy(), keep.numpy(), f.double().numpy()
        self.f = np.abs(self.signed)
        exact = self.signed[self.keep] @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy()
        self.errors = np.full(ids.shape, math.nan)
        self.errors[self.keep] = ((inputs.x.double().numpy() - exact) ** 2).mean(1)
        self.losses = {
            "ce_clean": lm.losses(ids).double().numpy(),
            "ce_sae": lm.losses(ids, LAYER, lambda _: spliced).double().numpy(),
        }

    def by_position(self, position: int) -> dict[str, float]:
        here = self.keep[:, position]
        found = {"mse": self.errors[here, position], "l1": self.f[here, position].sum(1)}
        if position < SEQ - 1:
            found |= {name: values[here, position] for name, values in self.losses.items()}
        result = {name: float(values.mean()) if len(values) else math.nan for name, values in found.items()}
        for kind, chosen in (("position", here), ("special", ~here)):
            f = self.f[chosen, position]
            active = f[f > 0]
            result |= {f"{kind} tokens": len(f), f"{kind} active": len(active)}
            result[f"{kind} l0"] = len(active) / len(f) if len(f) else math.nan
            result[f"{kind} density"] = result[f"{kind} l0"] / D_SAE
            result[f"{kind} mean"] = active.mean() if len(active) else math.nan
            result[f"{kind} std"] = active.std() if len(active) else math.nan
        return result

    def by_feature(self, feature: int) -> dict[str, object]:
        """Statistics of a feature that fires."""
        f = self.f[..., feature]
        active, counted = f[self.keep & (f > 0)], np.where(self.keep, f, math.nan)
        means = np.array(
            [f[here, p].mean() for p, here in enumerate(self.keep.T) if here.any()], dtype=np.float64
        )
        shares = means[means > 0] / means.sum()
        ids, where = self.ids[self.keep & (f > 0)], np.unique(self.ids[self.keep & (f > 0)])
        sums = [active[ids == token].sum() for token in where]
        means_of = {int(token): active[ids == token].mean() for token in where if (ids == token).sum() > 1}
        return {
            "active": len(active),
            "density": len(active) / self.keep.sum(),
            "mean": active.mean(),
            "std": active.std(),
            "max": active.max(),
            "position_entropy": -(shares * np.log(shares)).sum(),
            "position_share": omega_squared(counted[:, 1:]),
            "deciles": np.quantile(active, DECILES),
            "top token": where[int(np.argmax(sums))],
            "top token share": max(sums) / sum(sums),
            "tokens means": sorted(means_of.values(), reverse=True)[:3],
        }


def omega_squared(values: np.ndarray) -> float:
    """From its definition; columns are groups, NaN does not count."""
    groups = [column[~np.isnan(column)] for column in values.T if not np.isnan(column).all()]
    whole = np.concatenate(groups)
    between = sum(len(group) * (group.mean() - whole.mean()) ** 2 for group in groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (len(whole) - len(groups))
    return (between - (len(groups) - 1) * within) / (((whole - whole.mean()) ** 2).sum() + within)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    config = ModelConfig(path="bundled:gpt2-pico", dtype="float32")
    return load_language_model(config, torch.device("cpu"))


@pytest.fixture(scope="module")
def text(lm: LanguageModel) -> Text:
    """Source code, with a special token first and another one inside."""
    words = lm.tokenizer.encode_batch([inspect.getsource(argparse)])[0][: N * SEQ]
    tokens = np.array(words, dtype=np.int64).reshape(N, SEQ)
    tokens[:, 0] = tokens[5, 20] = lm.tokenizer.bos_id
    return Text(tokens, ~np.isin(tokens, list(lm.tokenizer.special_ids)))


def sae_of(kind: str) -> SAE:
    architecture = TopKConfig(k=8) if kind == "topk" else JumpReLUConfig(initial_threshold=2.5)
    sae = build_sae(architecture, 128, D_SAE, seed=0, numerics="modern")
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
        sae.b_enc[:5] = -1e3  # never fire
        if kind == "jumprelu":
            sae.get_parameter("threshold")[5:9] = -0.5  # negative latents pass
    return sae


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
@torch.no_grad()
def test_every_statistic_equals_a_naive_one_on_a_real_model(lm: LanguageModel, text: Text, kind: str) -> None:
    sae = sae_of(kind)
    found = everything(analyse_features({"a": Subject(sae, LAYER)}, lm, text, lm.sizes.vocabulary, KEPT)["a"])
    naive = Naive(lm, sae, torch.from_numpy(text.tokens), torch.from_numpy(text.mask))
    for position in range(SEQ):
        for name, expected in naive.by_position(position).items():
            assert found[name][position].item() == pytest.approx(expected, rel=1e-6, nan_ok=True), name
    fires = (naive.f[naive.keep] > 0).any(0)
    assert 5 <= (~fires).sum() < D_SAE - 50
    for feature in range(D_SAE):
        if fires[feature]:
            for name, expected in naive.by_feature(feature).items():
                value = found[name][..., feature] if name == "deciles" else found[name][feature]
                if name == "tokens means":
                    value = value[: len(expected)]
                close = pytest.approx(expected, rel=1e-6, abs=1e-9)
                assert (value.tolist() if value.ndim else value.item()) == close, (name, feature)
        else:
            assert (found["active"][feature], found["density"][feature]) == (0, 0)
            for name in ("mean", "std", "max", "position_entropy", "position_share", "top token share"):
                assert found[name][feature].isnan(), name
            assert found["deciles"][:, feature].isnan().all()
            assert found["top token"][feature] == -1
    assert (kind == "jumprelu") == bool((naive.signed < 0).any())


@pytest.fixture(scope="module")
def tiny() -> tuple[dict[str, Subject], Text]:
    """Two SAEs on a model of a few numbers, and a text in which some sequences come twice."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, (40, 8))
    tokens[20:30] = tokens[:10]
    tokens[:, 0] = tokens[5, 4] = 0
    sae = build_sae(TopKConfig(k=3), D, 16, seed=0, numerics="modern")
    other = build_sae(JumpReLUConfig(initial_threshold=1.5), D, 16, seed=1, numerics="modern")
    return {"a": Subject(sae, 0), "b": Subject(other, 1)}, Text(tokens, tokens != 0)


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=3, unique=True),
    batch=st.sampled_from([3, 7, 16]),
    most=st.sampled_from([2**25, 50]),
)
def test_parts_merged_in_order_equal_one_pass(tiny, cuts: list[int], batch: int, most: int) -> None:
    subjects, text = tiny
    whole = of_parts(subjects, text, [0, 40], 40, most)
    parts = of_parts(subjects, text, [0, *sorted(cuts), 40], batch, most)
    for name, one in whole.items():
        merged = everything(parts[name])
        for what, value in everything(one).items():
            assert torch.allclose(merged[what], value, rtol=1e-6, atol=1e-6, equal_nan=True), what
        assert one.codes.complete == parts[name].codes.complete


def of_parts(
    subjects: dict[str, Subject], text: Text, ends: list[int], batch: int, most: int
) -> dict[str, FeatureAnalysis]:
    """Analyse parts of the text in batches of some sequences, and merge them."""
    merged: dict[str, FeatureAnalysis] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "BATCH_TOKENS", 8 * batch)
        patch.setattr(features_module, "Codes", lambda d_sae: Codes(d_sae, most))
        for low, high in pairwise(ends):
            part = Text(text.tokens[low:high], text.mask[low:high], low)
            for name, one in analyse_features(subjects, TinyLM(), part, VOCABULARY, KEPT).items():
                if name in merged:
                    merged[name].merge(one)
                else:
                    merged[name] = one
    return merged


def test_a_pass_by_position_alone_finds_the_same(tiny) -> None:
    subjects, text = tiny
    for name, one in analyse_positions(subjects, TinyLM(), text).items():
        full = of_parts(subjects, text, [0, 40], 40, 2**25)[name]
        for what, value in by_position(full).items():
            assert torch.equal(by_position(one)[what].nan_to_num(-1), value.nan_to_num(-1)), what
