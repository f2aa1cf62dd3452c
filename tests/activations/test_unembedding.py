import pytest
import torch
from torch import nn

from sae_sweep.activations import load_language_model
from sae_sweep.activations.unembedding import folded_unembedding
from sae_sweep.config import ModelConfig, SaeSweepError
from tests.activations.families import save_family

CPU = torch.device("cpu")
TOKENS = torch.tensor([[0, 5, 9, 33, 120, 7, 8]])
FAMILIES = ("gpt2", "opt", "gpt_neo", "pythia", "llama", "gemma", "olmo", "bloom", "mpt", "cohere", "mamba")


def load(folder, name, *, dtype="float32", **keys):
    folder = save_family(folder / "m", name, **keys)
    return load_language_model(ModelConfig(path=str(folder), dtype=dtype), CPU)


def logits_after(lm, step):
    """The logits, if `step` is added before the final norm, and what stood there."""
    found = []

    def add(_, args):
        found.append(args[0])
        return (args[0] + step,)

    handle = lm._forward.parts["ln_final"].register_forward_pre_hook(add)
    with torch.no_grad():
        logits = lm._forward.network.double()(TOKENS, use_cache=False).logits
    handle.remove()
    return logits, found[0].double()


@pytest.mark.parametrize("name", FAMILIES)
def test_effects_are_the_finite_differences_of_the_models_logits(tmp_path, name):
    """Along a direction that leaves the norm's scale as it is, an effect over the scale is the change."""
    lm = load(tmp_path, name)
    unembedding = lm.unembedding().double()
    centred = bool((unembedding.sum(0).abs() < 1e-5).all())
    assert centred == (name not in ("llama", "gemma", "mamba"))
    _, final = logits_after(lm, 0)
    normed = final - final.mean(-1, keepdim=True) if centred else final
    scale = normed.square().mean(-1, keepdim=True).sqrt()
    step = 1e-2 * torch.randn(final.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step -= normed * (step * normed).sum(-1, keepdim=True) / normed.square().sum(-1, keepdim=True)
    change = (logits_after(lm, step)[0] - logits_after(lm, -step)[0]) / 2  # some norms compute in float32
    factor = lm._forward.network.config.logit_scale if name == "cohere" else 1.0
    torch.testing.assert_close(change.double(), factor * (step @ unembedding) / scale, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_what_is_done_to_the_logits_keeps_the_order_of_tokens(tmp_path, name):
    """Gemma's soft cap, and a factor."""
    lm = load(tmp_path, name)
    x = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0))
    expected = lm._forward.parts["ln_final"](x) @ lm._forward.parts["unembed"].weight.T
    ours = (x / x.square().mean().sqrt()) @ lm.unembedding()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision_are_folded_in_float32(tmp_path, dtype):
    lm = load(tmp_path, "llama", dtype=dtype)
    unembedding = lm.unembedding()
    assert unembedding.dtype == torch.float32
    network = lm._forward.network
    expected = network.lm_head.weight.float() * network.model.norm.weight.float()
    torch.testing.assert_close(unembedding, expected.T, rtol=1e-5, atol=1e-6)
    assert network.model.norm.weight.dtype == getattr(torch, dtype)


def test_tokens_that_no_text_has_are_left_out(tmp_path):
    lm = load(tmp_path, "gpt2", vocabulary=320)
    assert lm.sizes.vocabulary == 320
    assert lm.tokenizer.size == 300
    assert lm.unembedding().shape == (16, 300)


@pytest.mark.parametrize("name", ["openai-gpt", "opt_post_norm"])
def test_a_model_without_a_final_norm_is_refused(tmp_path, name):
    with pytest.raises(SaeSweepError, match="the model has no final norm before its unembedding"):
        load(tmp_path, name).unembedding()


class Squashed(nn.Module):
    def forward(self, x):
        return torch.tanh(nn.functional.layer_norm(x, x.shape[-1:]))


def parts(norm=None, between=None, unembed=None):
    """A model of its last modules, and a run of it."""
    norm, unembed = norm or nn.LayerNorm(8), unembed or nn.Linear(8, 20)
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    return {"ln_final": norm, "unembed": unembed}, lambda: unembed((between or nn.Identity())(norm(x)))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"norm": Squashed()}, r"the final norm \(Squashed\) is neither LayerNorm nor RMSNorm"),
        ({"between": nn.Tanh()}, "does more after its final norm than unembed"),
        ({"between": nn.Linear(8, 4), "unembed": nn.Linear(4, 20)}, "does more after its final norm"),
        ({"unembed": nn.Sequential(nn.Linear(8, 20), nn.Tanh())}, "not a matrix of d_model columns"),
    ],
)
def test_what_is_not_folded_is_refused(keys, why):
    made, run = parts(**keys)
    with torch.no_grad(), pytest.raises(SaeSweepError, match=why):
        folded_unembedding(made, run)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in made.values())


def test_an_odd_number_of_dimensions_and_weights_of_any_sign():
    norm = nn.LayerNorm(7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    unembed = nn.Linear(7, 20)
    x = torch.randn(1, 2, 7)
    with torch.no_grad():
        folded = folded_unembedding({"ln_final": norm, "unembed": unembed}, lambda: unembed(norm(x)))
        expected = unembed(norm(x)) - unembed(norm.bias)
        scale = x.var(-1, keepdim=True, unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close((x @ folded) / scale, expected, rtol=1e-3, atol=1e-5)
