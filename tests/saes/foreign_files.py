"""Folders in the layouts of other libraries, written by hand, and what those libraries compute from them."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, relu

from sae_sweep.config import SaeSweepError
from sae_sweep.saes import load_sae

D_IN, D_SAE, K = 12, 24, 3
DICTIONARIES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)
STUDY_TYPES = ("vanilla", "topk", "batchtopk", "jumprelu")


class Drawn:
    """Random tensors from one seed."""

    def __init__(self, seed: int = 5) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def inputs(n: int = 40) -> Tensor:
    return Drawn(9)(n, D_IN) * 3 + 1


def sparsify_folder(
    folder: Path, *, weights: dict[str, Tensor] | None = None, **keys: Any
) -> dict[str, Tensor]:
    """What sparsify's `save_to_disk` writes; returns the tensors."""
    draw = Drawn()
    state = weights or {
        "encoder.weight": draw(D_SAE, D_IN),
        "encoder.bias": draw(D_SAE),
        "W_dec": draw(D_SAE, D_IN),
        "b_dec": draw(D_IN),
    }
    cfg = {
        "activation": "topk",
        "expansion_factor": D_SAE // D_IN,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
        **keys,
    }
    _write_json(folder / "cfg.json", cfg)
    save_file(state, folder / "sae.safetensors")
    return state


def sparsify_answer(state: dict[str, Tensor], x: Tensor, activation: str = "topk") -> tuple[Tensor, Tensor]:
    """Features and reconstruction, as `SparseCoder.encode` and `decode` have them."""
    z = relu(linear(x - state["b_dec"], state["encoder.weight"], state["encoder.bias"]))
    if activation == "topk":
        values, where = z.topk(K, dim=-1)
    else:
        values, where = z.unflatten(-1, (K, -1)).max(dim=-1)
        where = where + torch.arange(0, D_SAE, D_SAE // K)
    f = torch.zeros_like(z).scatter(-1, where, values)
    return f, f @ state["W_dec"] + state["b_dec"]


def dictionary_state(name: str, *, unit: bool = False) -> dict[str, Tensor]:
    """The state dict of a class of dictionary_learning."""
    draw = Drawn(len(name))
    rows = draw(D_SAE, D_IN)
    rows = rows / rows.norm(dim=1, keepdim=True) if unit else rows
    linears = {"encoder.weight": draw(D_SAE, D_IN), "decoder.weight": rows.t().contiguous()}
    matrices = {"W_enc": draw(D_IN, D_SAE), "W_dec": rows, "b_enc": draw(D_SAE), "b_dec": draw(D_IN)}
    counted = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.5)}
    topk = {**counted, **linears, "encoder.bias": draw(D_SAE), "b_dec": draw(D_IN)}
    states = {
        "AutoEncoder": {"bias": draw(D_IN), **linears, "encoder.bias": draw(D_SAE)},
        "AutoEncoderNew": {**linears, "encoder.bias": draw(D_SAE), "decoder.bias": draw(D_IN)},
        "GatedAutoEncoder": {
            "decoder_bias": draw(D_IN),
            **{name: draw(D_SAE) / 2 for name in ("r_mag", "gate_bias", "mag_bias")},
            **linears,
        },
        "JumpReluAutoEncoder": {**matrices, "threshold": draw(D_SAE)},
        "AutoEncoderTopK": topk,
        "BatchTopKSAE": topk,
        "MatryoshkaBatchTopKSAE": {**counted, "group_sizes": torch.tensor([8, 16]), **matrices},
    }
    return states[name]


def dictionary_folder(
    folder: Path, name: str, *, state: Any = None, trainer: dict[str, Any] | None = None, **keys: Any
) -> None:
    """What dictionary_learning's `trainSAE` writes."""
    described = {
        "trainer_class": "StandardTrainer",
        "dict_class": name,
        "lr": 1e-3,
        "steps": 10,
        "seed": None,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        **({"k": K} if name.endswith(("TopK", "TopKSAE")) else {}),
        "device": "cpu",
        "layer": 7,
        "lm_name": "gpt2",
        "wandb_name": "SAE",
        "submodule_name": "resid_post_layer_7",
        **(trainer or {}),
    }
    buffer = {"d_submodule": D_IN, "io": "out", "ctx_len": 128}
    kept = {key: value for key, value in described.items() if value != "no"}
    _write_json(folder / "config.json", {"trainer": kept, "buffer": buffer, **keys})
    torch.save(dictionary_state(name) if state is None else state, folder / "ae.pt")


def dictionary_answer(name: str, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstruction, as the class's `encode` and `decode` have them after `load_dictionary`."""
    if name == "AutoEncoder":
        norms = w["decoder.weight"].norm(dim=0)
        f = relu(linear(x - w["bias"], w["encoder.weight"] * norms[:, None], w["encoder.bias"] * norms))
        return f, linear(f, w["decoder.weight"] / norms) + w["bias"]
    if name == "AutoEncoderNew":
        f = relu(linear(x, w["encoder.weight"], w["encoder.bias"]))
        return f, linear(f, w["decoder.weight"], w["decoder.bias"])
    if name == "GatedAutoEncoder":
        z = linear(x - w["decoder_bias"], w["encoder.weight"])
        f = (z + w["gate_bias"] > 0) * relu(w["r_mag"].exp() * z + w["mag_bias"])
        return f, linear(f, w["decoder.weight"]) + w["decoder_bias"]
    if name == "JumpReluAutoEncoder":
        z = x @ w["W_enc"] + w["b_enc"]
        f = relu(z * (z > w["threshold"]))
        return f, f @ w["W_dec"] + w["b_dec"]
    if name == "MatryoshkaBatchTopKSAE":
        z = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        f = z * (z > w["threshold"])
        return f, f @ w["W_dec"] + w["b_dec"]
    z = relu(linear(x - w["b_dec"], w["encoder.weight"], w["encoder.bias"]))
    if name == "AutoEncoderTopK":
        values, where = z.topk(K, dim=-1)
        f = torch.zeros_like(z).scatter(-1, where, values)
    else:
        f = z * (z > w["threshold"])
    return f, linear(f, w["decoder.weight"]) + w["b_dec"]


def study_state(kind: str) -> dict[str, Tensor]:
    """The state dict of an SAE of bartbussmann/BatchTopK."""
    draw = Drawn(len(kind))
    state = {
        "b_dec": draw(D_IN),
        "b_enc": draw(D_SAE),
        "W_enc": draw(D_IN, D_SAE),
        "W_dec": draw(D_SAE, D_IN),
    }
    return state | ({"jumprelu.log_threshold": draw(D_SAE)} if kind == "jumprelu" else {})


def study_folder(folder: Path, kind: str, *, state: Any = None, **keys: Any) -> None:
    """What its `save_checkpoint` writes."""
    cfg = {
        "seed": 49,
        "batch_size": 4096,
        "l1_coeff": 0,
        "seq_len": 128,
        "dtype": "torch.float32",
        "model_name": "gpt2-small",
        "site": "resid_pre",
        "layer": 8,
        "act_size": D_IN,
        "dict_size": D_SAE,
        "device": "cuda:0",
        "dataset_path": "Skylion007/openwebtext",
        "input_unit_norm": True,
        "sae_type": kind,
        "n_batches_to_dead": 5,
        "top_k": K,
        "top_k_aux": 512,
        "aux_penalty": 0.03125,
        "bandwidth": 0.001,
        "hook_point": "blocks.8.hook_resid_pre",
        "name": "gpt2-small_blocks.8.hook_resid_pre",
        **keys,
    }
    _write_json(folder / "config.json", {key: value for key, value in cfg.items() if value != "no"})
    torch.save(study_state(kind) if state is None else state, folder / "sae.pt")


def study_answer(
    kind: str, w: dict[str, Tensor], x: Tensor, *, unit_norm: bool = True
) -> tuple[Tensor, Tensor]:
    """Features and `sae_out`, as the class's `forward` has them."""
    mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
    xn = (x - mean) / (std + 1e-5) if unit_norm else x
    if kind == "jumprelu":
        z = relu(xn @ w["W_enc"] + w["b_enc"])
        f = z * (z > w["jumprelu.log_threshold"].exp())
    elif kind == "vanilla":
        f = relu((xn - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    else:
        z = relu((xn - w["b_dec"]) @ w["W_enc"])
        flat = z.flatten() if kind == "batchtopk" else z
        values, where = flat.topk(K * (len(x) if kind == "batchtopk" else 1), dim=-1)
        f = torch.zeros_like(flat).scatter(-1, where, values).reshape(z.shape)
    out = f @ w["W_dec"] + w["b_dec"]
    return f, out * std + mean if unit_norm else out


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


SPARSIFY = sparsify_folder
DICTIONARY = functools.partial(dictionary_folder, name="AutoEncoderTopK")
STUDY = functools.partial(study_folder, kind="topk")
ALL = (
    ("cfg.json", "sae.safetensors", SPARSIFY),
    ("config.json", "ae.pt", DICTIONARY),
    ("config.json", "sae.pt", STUDY),
)
"""One SAE of each layout: its files, and what writes them."""


def refused(path: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(SaeSweepError) as caught:
        load_sae(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line
