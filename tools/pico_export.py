"""Export a trained pico as a Hugging Face folder, and check it against the trained model."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from pico_data import EOT
from pico_model import Pico, Shape, hf_state
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel


def export(model: Pico, work: Path, folder: Path) -> None:
    """Write config, fp16 weights and the tokenizer of `work` into `folder`, once they are verified.

    Raises:
        RuntimeError: if the exported logits differ from those of `model` with rounded weights, or the
        tokenizer does not round-trip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    weights = {name: weight.to(torch.float16) for name, weight in hf_state(model).items()}
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    eot = Tokenizer.from_file(str(work / "tokenizer.json")).token_to_id(EOT)
    (part / "config.json").write_text(json.dumps(hf_config(model.shape, eot), indent=2) + "\n")
    (part / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(model.shape), indent=2) + "\n")
    shutil.copyfile(work / "tokenizer.json", part / "tokenizer.json")
    verify(model, part)
    for file in sorted(part.iterdir()):
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    part.rmdir()


def hf_config(shape: Shape, eot: int) -> dict[str, object]:
    """Return the contents of config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.d_model,
        "n_positions": shape.n_ctx,
        "n_inner": None,
        "vocab_size": shape.vocab,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "tie_word_embeddings": True,
        "dtype": "float16",
    }


def tokenizer_config(shape: Shape) -> dict[str, object]:
    """Return the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": shape.n_ctx,
        "bos_token": EOT,
        "eos_token": EOT,
        "unk_token": EOT,
        "add_prefix_space": False,
    }


@torch.no_grad()
def verify(model: Pico, folder: Path) -> None:
    """Load the folder as a user would, and compare it with the model that it was written from."""
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.arange(2 * model.shape.n_ctx).remainder(model.shape.vocab).view(2, -1)
    rounded = Pico(model.shape)
    rounded.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    difference = (theirs(ids).logits - rounded(ids) @ rounded.wte.T).abs().max().item()
    if difference > 1e-3:
        raise RuntimeError(f"the exported model's logits differ from the trained model's by {difference:.2g}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "def f(x):\n        return x  # naïve\n"
    if tokenizer.decode(tokenizer(text)["input_ids"]) != text:
        raise RuntimeError("the exported tokenizer does not round-trip text")
