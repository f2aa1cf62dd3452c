"""Language models from the hub, a folder, a .gguf file or our own assets, all through TransformerBridge."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sae_sweep.activations.device import lm_dtype
from sae_sweep.activations.forward import choose_forward, plain_twin
from sae_sweep.activations.model import LanguageModel
from sae_sweep.activations.model_files import local_path
from sae_sweep.activations.tokenizer import LMTokenizer
from sae_sweep.config import ModelConfig, SaeSweepError, first_line

log = logging.getLogger(__name__)

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def load_language_model(model: ModelConfig, device: torch.device, *, fast: bool = True) -> LanguageModel:
    """Load a model, frozen and in inference mode, in the dtype that `model.dtype` asks for.

    Args:
        model: which.
        device: where to.
        fast: take fused attention where a probe finds it equal; False keeps the bridge's eager one.

    Raises:
        SaeSweepError: if it cannot be found, read, or run by TransformerBridge; or the hub cannot be reached.
    """
    dtype = lm_dtype(model.dtype, device)
    path = local_path(model) or _fetch(model)
    with _quiet(), _explained(model):
        tokenizer, network = _load_file(path, dtype) if path.is_file() else _load_folder(path, dtype)
        network.eval().requires_grad_(False).to(device)
        twin = plain_twin(network) if fast else None
        bridge = TransformerBridge.boot_transformers(
            str(path), hf_model=network, tokenizer=tokenizer, device=device, dtype=dtype
        )
        bridge.eval().requires_grad_(False)
        words = LMTokenizer(tokenizer, model.path)
        forward = choose_forward(bridge, twin, words, dtype)
    loaded = LanguageModel(forward, bridge.cfg, words, model.label, device, dtype)
    log.info(
        "%s: %d layers of %d in %s on %s, %s attention",
        *(model.label, loaded.n_layers, loaded.d_model, dtype, device, loaded.attention),
    )
    return loaded


def _load_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise SaeSweepError(f"model.path={folder}: no config.json: give what save_pretrained wrote")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _load_file(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    if file.suffix != ".gguf":
        raise SaeSweepError(f"model.path={file}: give a folder, a .gguf file, or a repository on the hub")
    where = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    return tokenizer, AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **where)


def _fetch(model: ModelConfig) -> Path:
    """Return the folder of a hub model, downloading what is not in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    revision = model.revision or "main"
    try:
        folder = Path(snapshot_download(model.path, revision=revision, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(model.path, revision=revision, allow_patterns=["*.bin"])
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise SaeSweepError(
            f"model.path={model.path}: no such file or folder here, and no such model on the hub "
            f"(revision {revision}) that is open to you"
        ) from error
    except (OSError, ValueError) as error:
        raise SaeSweepError(
            f"cannot get {model.path} from the Hugging Face hub ({first_line(error)}). Offline, use "
            "model=gpt2-pico, which is bundled, or model.path=FOLDER; or fill the hub's cache while online: "
            f"hf download {model.path} --revision {revision}"
        ) from error
    return folder


@contextmanager
def _explained(model: ModelConfig) -> Iterator[None]:
    """Tell in one line what the libraries say about a damaged or unknown model."""
    try:
        yield
    except SaeSweepError:
        raise
    except Exception as error:  # each format and library has its own way to say that a file is damaged
        raise SaeSweepError(f"cannot load model.path={model.path}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of single tensors."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
