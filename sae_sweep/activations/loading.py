"""Loads language models from the hub, a folder, a .gguf file or the assets, through TransformerBridge."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sae_sweep.activations.device import lm_dtype
from sae_sweep.activations.forward import choose_forward, copy_sharing_weights
from sae_sweep.activations.gguf_file import check_gguf
from sae_sweep.activations.model import LanguageModel
from sae_sweep.activations.model_files import download, local_path
from sae_sweep.activations.tokenizer_file import largest_id
from sae_sweep.config import ModelConfig, SaeSweepError, first_line, shape_problem
from sae_sweep.signals import obeyed
from sae_sweep.text.encoder import quiet_transformers

log = logging.getLogger(__name__)


def load_language_model(model: ModelConfig, device: torch.device, *, fast: bool = True) -> LanguageModel:
    """Load a model for inference, with frozen weights, in the dtype that `model.dtype` names.

    Args:
        model: its path, revision and dtype.
        device: where its weights are placed.
        fast: use fused attention if a probe finds it equal; False keeps the bridge's eager attention.

    Raises:
        SaeSweepError: if it cannot be found, read or run by TransformerBridge, or the hub cannot be reached.
    """
    dtype = lm_dtype(model.dtype, device)
    path = local_path(model) or download(model)
    with quiet_transformers(), _load_errors(model), obeyed():
        tokenizer, network = _load_file(path, dtype) if path.is_file() else _load_folder(path, dtype)
        has_bos = getattr(tokenizer, "bos_token_id", None) is not None  # the bridge may give it one
        network.eval().requires_grad_(False).to(device)
        unbridged = copy_sharing_weights(network) if fast else None
        bridge = TransformerBridge.boot_transformers(
            str(path), hf_model=network, tokenizer=tokenizer, device=device, dtype=dtype
        )
        bridge.eval().requires_grad_(False)
        lm_tokenizer = LMTokenizer(tokenizer, model.path, has_bos=has_bos)
        forward = choose_forward(bridge, unbridged, lm_tokenizer, dtype)
        components = {
            name: part.name
            for name, part in bridge.adapter.component_mapping.items()
            if hasattr(part, "name")
        }
    loaded = LanguageModel(forward, bridge.cfg, components, lm_tokenizer, model.label, device, dtype)
    log.info(
        "%s: %d layers of %d in %s on %s, %s attention",
        *(model.label, loaded.n_layers, loaded.d_model, dtype, device, loaded.attention),
    )
    return loaded


class LMTokenizer:
    """A Hugging Face tokenizer as a `sae_sweep.text.TextTokenizer`."""

    def __init__(self, tokenizer: Any, model: str, *, has_bos: bool = True) -> None:
        """Wrap a fast tokenizer of transformers, and say whether it had a BOS token when it was loaded.

        Raises:
            SaeSweepError: if it has no end-of-text token, or is not a fast one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.eos_token_id is None:
            lack = "tokenizer.json" if backend is None else "end-of-text token"
            raise SaeSweepError(f"the tokenizer of {model} has no {lack}: choose another model")
        # "<|endoftext|>" in a document is tokenised as characters, not as the special token
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.eot_id: int = tokenizer.eos_token_id
        self.bos_id: int = self.eot_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.has_bos = has_bos
        self.special_ids = frozenset({self.bos_id, self.eot_id, *tokenizer.all_special_ids})
        self.size: int = max(*backend.get_vocab(with_added_tokens=True).values(), *self.special_ids) + 1

    def strings(self, count: int) -> list[str]:
        """Text of each of the first `count` token ids alone, special ones too."""
        return [self._backend.decode([token], skip_special_tokens=False) for token in range(count)]

    def decode_batch(self, documents: list[list[int]]) -> list[str]:
        """Text of documents, without the special tokens in them."""
        return list(self._backend.decode_batch(documents, skip_special_tokens=True))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts on all cores; special tokens are neither added nor recognised in the text."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def _load_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise SaeSweepError(f"model.path={folder}: no config.json: give what save_pretrained wrote")
    if problem := shape_problem(folder):
        raise SaeSweepError(f"model.path={folder}: {problem}")
    return _load(folder, dtype)


def _load_file(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    if file.suffix != ".gguf":
        raise SaeSweepError(f"model.path={file}: give a folder, a .gguf file, or a repository on the hub")
    check_gguf(file)
    return _load(file.parent, dtype, gguf_file=file.name)


def _load(folder: Path, dtype: torch.dtype, **where: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **where)
    network, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True, **where
    )
    _refuse_other_weights(found, getattr(network.config, "num_hidden_layers", math.inf))
    _refuse_other_tokens(tokenizer, network.get_input_embeddings().num_embeddings)
    _bridge_as_loaded(network)
    return tokenizer, network


def _bridge_as_loaded(network: Any) -> None:
    """Name the model's class in its config, where TransformerBridge looks for it; a .gguf file names none.

    Raises:
        ValueError: naming the families that there are, if TransformerBridge has no adapter for the class.
    """
    kind = type(network).__name__
    if kind not in SUPPORTED_ARCHITECTURES:
        raise ValueError(f"TransformerLens has no adapter for {kind}; it has some for {_families()}")
    network.config.architectures = [kind]


def _families() -> str:
    """Families of models that both libraries know: gemma stands for gemma3_text, gpt for gpt2 and gptj."""
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    known = {re.split(r"[\d_-]", name)[0] for name, kind in kinds if kind in SUPPORTED_ARCHITECTURES}
    return ", ".join(
        name for name in sorted(known) if not any(name[:end] in known for end in range(3, len(name)))
    )


def _refuse_other_weights(found: Mapping[str, Any], n_layers: float) -> None:
    """Refuse weights that lack some, which would be random, or that have more blocks than the config."""
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]}: the file or config.json beside it is damaged")
    for name in sorted(found["unexpected_keys"]):
        block = re.search(r"\.(\d+)\.", name)
        if block and int(block[1]) >= n_layers:
            raise ValueError(f"its weights have {name}, and config.json says {n_layers} layers")


def _refuse_other_tokens(tokenizer: Any, embeddings: int) -> None:
    """Refuse a tokenizer whose text would have ids that the model does not know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)
    largest = max(0 if backend is None else largest_id(backend), *special, 0)
    if largest >= embeddings:
        raise ValueError(f"its tokenizer has token {largest}, and its weights know {embeddings} tokens")


@contextmanager
def _load_errors(model: ModelConfig) -> Iterator[None]:
    """Raise a library's error about a damaged or unknown model as a one-line SaeSweepError."""
    try:
        yield
    except SaeSweepError:
        raise
    except Exception as error:  # each format and library reports a damaged file in its own way
        why = first_line(error)
        if "ignore_mismatched_sizes" in why:
            why = "its weights have other sizes than its config says"
        if unknown := re.match(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", why):
            why = f"a model of {unknown[1]} does not predict the next token"
        raise SaeSweepError(f"cannot load model.path={model.path}: {why}") from error
