"""The tokenizer of a model on this disk, read without torch: it says early what would go wrong later."""

from pathlib import Path
from typing import Any

from sae_sweep.activations.model_files import local_path
from sae_sweep.config import ModelConfig, first_line
from sae_sweep.store import regular, unreadable


def counting_tokenizer(model: ModelConfig) -> "CountingTokenizer":
    """Return a tokenizer that counts tokens like that of a model.

    Raises:
        SaeSweepError: if its `tokenizer.json` is damaged.
    """
    return CountingTokenizer(_backend(model))


def tokenizer_problem(model: ModelConfig) -> str | None:
    """Say that text would have token ids that a model's embedding lacks; None if not, or if that is unknown.

    Raises:
        SaeSweepError: if its `tokenizer.json` is damaged.
    """
    backend = _backend(model)
    if backend is None or model.vocabulary is None or (largest := largest_id(backend)) < model.vocabulary:
        return None
    return (
        f"model.path={model.path}: its tokenizer has token {largest}, and its weights know "
        f"{model.vocabulary} tokens: put the tokenizer of this model there"
    )


def largest_id(backend: Any) -> int:
    """Return the largest token id that text can have; special tokens in it are read as characters."""
    added = backend.get_added_tokens_decoder().items()
    ids = [number for number, token in added if not token.special]
    return max(*backend.get_vocab(with_added_tokens=False).values(), *ids, 0, 0)


class CountingTokenizer:
    """A `sae_sweep.text.TextTokenizer` whose tokens are as many as the model's; where its file is not on this
    disk, they are more: the bytes of the text.
    """

    bos_id = eot_id = 0
    special_ids = frozenset({0})

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts."""
        if self._backend is None:
            return [[0, *text.encode()] for text in texts]  # some tokenizers open a text with a blank
        found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]


def _backend(model: ModelConfig) -> Any:
    """The tokenizer in the folder of a model; None if there is no such folder or file."""
    folder = local_path(model)
    if folder is None or not (file := Path(folder) / "tokenizer.json").exists():
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(regular(file)))
    except Exception as error:  # the library raises nothing more exact
        raise unreadable(file, error if isinstance(error, OSError) else first_line(error)) from error
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend
