"""A Hugging Face tokenizer as the text room wants it."""

from typing import Any

from sae_sweep.config import SaeSweepError


class LMTokenizer:
    """Satisfies `sae_sweep.text.TextTokenizer`."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        """Wrap a fast tokenizer of transformers.

        Raises:
            SaeSweepError: if it has no end-of-text token, or is not a fast one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.eos_token_id is None:
            lack = "tokenizer.json" if backend is None else "end-of-text token"
            raise SaeSweepError(f"the tokenizer of {model} has no {lack}: choose another model")
        # text is text: "<|endoftext|>" in a document stands for its characters
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.eot_id: int = tokenizer.eos_token_id
        self.bos_id: int = self.eot_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.special_ids = frozenset({self.bos_id, self.eot_id, *tokenizer.all_special_ids})

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokenise on all cores; adds no special tokens, and reads none out of the text."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
