"""A language model whose residual stream can be read and replaced."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_sweep.activations.forward import Forward, Patch, Replace
from sae_sweep.config import ConfigError
from sae_sweep.text.packing import TextTokenizer

_LOGITS_AT_ONCE = 2**27
"""Logits held at a time, in numbers: half a GB of float32."""


class LanguageModel:
    """A loaded model; residuals are those of the original model, neither folded nor centred."""

    def __init__(
        self,
        forward: Forward,
        shape: Any,
        tokenizer: TextTokenizer,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Wrap a loaded model.

        Args:
            forward: how it is run.
            shape: the config of its TransformerBridge.
            tokenizer: its own.
            name: what messages call it.
            device: where it lies.
            dtype: of its arithmetic.
        """
        self._forward = forward
        self.tokenizer = tokenizer
        self.name = name
        self.device = device
        self.dtype = dtype
        self.d_model: int = shape.d_model
        self.n_layers: int = shape.n_layers
        self.n_ctx: int = shape.n_ctx
        """Longest sequence, in tokens."""
        self._vocabulary: int = shape.d_vocab
        self.tokens_read = 0
        """Tokens that `residuals` has read."""
        self.seconds = 0.0
        """What that took, as the host sees it: on a GPU, which works on by itself, a lower bound."""

    @property
    def attention(self) -> str:
        """eager or sdpa, found when it was loaded: other bits, equal but for rounding."""
        return self._forward.attention

    def check(self, layers: Sequence[int], seq_len: int) -> None:
        """Raise ConfigError, naming what is possible, if a layer or the sequence length is not."""
        problems = [
            f"layer={layer}: {self.name} has layers 0 to {self.n_layers - 1}"
            for layer in layers
            if not 0 <= layer < self.n_layers
        ]
        if seq_len > self.n_ctx:
            problems.append(f"packing.seq_len={seq_len}: {self.name} reads at most {self.n_ctx} tokens")
        if problems:
            raise ConfigError(problems)

    @torch.no_grad()
    def residuals(
        self, tokens: Int[Tensor, "b s"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "b s d_model"]]:
        """Return `resid_pre` of each layer, in one pass that goes no further than the last of them."""
        self.check(layers, tokens.shape[1])
        began = time.perf_counter()
        found = self._forward.residuals(tokens.to(self.device), layers)
        self.tokens_read += tokens.numel()
        self.seconds += time.perf_counter() - began
        return {layer: found[layer] for layer in layers}

    @torch.no_grad()
    def losses(
        self,
        tokens: Int[Tensor, "b s"],
        layer: int | None = None,
        replace: Replace | None = None,
        residual: Float[Tensor, "b s d_model"] | None = None,
    ) -> Float[Tensor, "b s-1"]:
        """Return the cross-entropy of each next token, in nats and float32.

        Args:
            tokens: the sequences; a large batch is run in parts, which bounds the memory of the logits.
            layer: whose `resid_pre` is replaced.
            replace: what it is replaced by, from the residual of the sequences in hand; None: nothing is.
            residual: the layer's `resid_pre`, from an earlier pass over the same batch: where the model can,
                the pass begins there, with the same result.
        """
        patch = None
        if replace is not None:
            if layer is None:
                raise ValueError("replace needs the layer whose residual it replaces")
            self.check([layer], tokens.shape[1])
            patch = Patch(layer, replace, residual)
        at_once = max(1, _LOGITS_AT_ONCE // (tokens.shape[1] * self._vocabulary))
        return torch.cat(
            [
                self._losses(tokens[start : start + at_once], patch and patch.part(start, at_once))
                for start in range(0, len(tokens), at_once)
            ]
        )

    def _losses(self, tokens: Tensor, patch: Patch | None) -> Tensor:
        tokens = tokens.to(self.device)
        logits = self._forward.logits(tokens, patch)
        predictions = logits[:, :-1].float().flatten(0, 1)
        each = functional.cross_entropy(predictions, tokens[:, 1:].flatten().long(), reduction="none")
        return each.view(len(tokens), -1)
