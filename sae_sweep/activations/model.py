"""The loaded language model: its residuals, and its losses with a residual replaced."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sae_sweep.activations.forward import Forward, Patch, Replace
from sae_sweep.activations.key_value_cache import preallocated
from sae_sweep.activations.positions import PositionChange, changed, learned_positions, other_positions
from sae_sweep.activations.unembedding import Unembedding, fold
from sae_sweep.config import ConfigError, SaeSweepError
from sae_sweep.text.packing import TextTokenizer

LOGITS_AT_ONCE = 2**27
"""Largest number of logits in memory together: half a GB in float32."""


class ModelTokenizer(TextTokenizer, Protocol):
    """The tokenizer of a loaded model, which also gives text back."""

    @property
    def size(self) -> int:
        """Number of token ids, special ones included; a model may know more, which no text has."""
        ...

    @property
    def has_bos(self) -> bool:
        """Whether the tokenizer has a BOS token, rather than the end-of-text token in its place."""
        ...

    def decode_batch(self, documents: list[list[int]]) -> list[str]:
        """Text of documents, without the special tokens in them."""
        ...

    def strings(self, count: int) -> list[str]:
        """Text of each of the first `count` token ids alone; U+FFFD where it is a part of a character."""
        ...


class LMSizes(NamedTuple):
    """Sizes that the memory of a pass depends on."""

    d_model: int
    d_mlp: int
    heads: int
    vocabulary: int
    itemsize: int
    """Bytes per activation."""
    attention: str
    """eager or sdpa."""


class LanguageModel:
    """A loaded model; its residuals are those of the original weights, neither folded nor centred."""

    def __init__(
        self,
        forward: Forward,
        bridge_config: Any,
        components: Mapping[str, str],
        tokenizer: ModelTokenizer,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Wrap a loaded model.

        Args:
            forward: runs it.
            bridge_config: config of its TransformerBridge, which has its dimensions.
            components: names of the submodules that its TransformerBridge takes for pos_embed, ln_final and
                unembed; a model may lack some.
            tokenizer: its tokenizer.
            name: its name in messages.
            device: device of its weights.
            dtype: dtype of its arithmetic.
        """
        self._forward = forward
        self._components = components
        self._positional_kind = str(getattr(bridge_config, "positional_embedding_type", "unknown"))
        self.tokenizer = tokenizer
        self.name = name
        self.device = device
        self.dtype = dtype
        self.d_model: int = bridge_config.d_model
        self.n_layers: int = bridge_config.n_layers
        self.n_ctx: int = bridge_config.n_ctx
        """Longest sequence, in tokens."""
        self._vocabulary: int = bridge_config.d_vocab
        self.sizes = LMSizes(
            self.d_model,
            d_mlp=getattr(bridge_config, "d_mlp", None) or 4 * self.d_model,
            heads=bridge_config.n_heads,
            vocabulary=self._vocabulary,
            itemsize=dtype.itemsize,
            attention=forward.attention,
        )
        self.tokens_read = 0
        """Tokens that `residuals` has processed."""
        self.seconds = 0.0
        """Seconds spent in `residuals` on the host; a lower bound on a GPU, which runs asynchronously."""

    @property
    def attention(self) -> str:
        """eager or sdpa, chosen at loading; the two differ by rounding."""
        return self._forward.attention

    @property
    def fell_back(self) -> str | None:
        """Why attention is not the fused one, if that was wanted."""
        return self._forward.fell_back

    def check(self, layers: Sequence[int], seq_len: int) -> None:
        """Raise ConfigError, with the valid values, if the model lacks a layer or reads no such length."""
        problems = [
            f"layer={layer}: {self.name} has layers 0 to {self.n_layers - 1}"
            for layer in layers
            if not 0 <= layer < self.n_layers
        ]
        if seq_len > self.n_ctx:
            problems.append(f"packing.seq_len={seq_len}: {self.name} reads at most {self.n_ctx} tokens")
        if problems:
            raise ConfigError(problems)

    def check_changes_positions(self) -> None:
        """Raise SaeSweepError, saying what it has instead, if the model learned no positional embeddings."""
        if self._learned_positions() is None:
            raise SaeSweepError(
                f"{self.name} has no learned positional embeddings to change (its positions: "
                f"{other_positions(self._positional_kind)}): take analysis.positions=none"
            )

    @contextmanager
    def changed_positions(self, change: PositionChange) -> Iterator[None]:
        """Change the positional embeddings in every pass within the block; the weights stay as they are.

        Raises:
            SaeSweepError: if the model learned none, or looks them up in a way of its own.
        """
        self.check_changes_positions()
        module = self._learned_positions()
        if module is not None:
            with changed(self._forward.network, module, change):
                yield

    def _learned_positions(self) -> nn.Module | None:
        return learned_positions(self._forward.network, self._components.get("pos_embed"))

    @torch.no_grad()
    def unembedding(self, tokens: Int[Tensor, "b s"]) -> Unembedding:
        """The unembedding of the tokens that the tokenizer has, with the final norm folded in.

        Args:
            tokens: a few sequences, on which it is checked against the model's logits.

        Raises:
            SaeSweepError: if the model makes its logits in another way.
        """
        network = self._forward.network
        names = [self._components.get(name) for name in ("ln_final", "unembed")]
        if None in names:
            raise SaeSweepError(f"{self.name} has no final norm before its unembedding")
        norm, unembed = (network.get_submodule(str(name)) for name in names)
        found: list[Tensor] = []
        handle = norm.register_forward_pre_hook(
            lambda _, args, kwargs: found.append((*args, *kwargs.values())[0]), with_kwargs=True
        )
        try:
            logits = self._forward.logits(tokens.to(self.device), None)
        finally:
            handle.remove()
        norm, unembed = (getattr(part, "original_component", part) for part in (norm, unembed))
        cap = getattr(network.config, "final_logit_softcapping", None)
        try:
            if len(found) != 1:
                raise SaeSweepError(f"its final norm is used {len(found)} times in a pass")
            whole = fold(norm, unembed, found[0].flatten(0, 1), logits.flatten(0, 1), cap)
            return whole.of_first(self.tokenizer.size)
        except SaeSweepError as error:
            raise SaeSweepError(f"{self.name}: {error}") from error

    @torch.no_grad()
    def residuals(
        self, tokens: Int[Tensor, "b s"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "b s d_model"]]:
        """Return `resid_pre` of each layer, from one pass that stops at the last of them."""
        self.check(layers, tokens.shape[1])
        began = time.perf_counter()
        residuals = self._forward.residuals(tokens.to(self.device), layers)
        self.tokens_read += tokens.numel()
        self.seconds += time.perf_counter() - began
        return {layer: residuals[layer] for layer in layers}

    @torch.no_grad()
    def next_logits(self, tokens: Int[Tensor, "b s"], cache: Any = None) -> tuple[Float[Tensor, "b v"], Any]:
        """Return the logits of the token that follows, in float32, and the cache of keys and values.

        Args:
            tokens: sequences, or what follows those that the cache holds.
            cache: returned by the pass over what comes before; this pass changes it.

        Raises:
            SaeSweepError: if the model keeps no such cache.
        """
        found = self._forward.network(tokens.to(self.device), past_key_values=cache, use_cache=True)
        kept = getattr(found, "past_key_values", None)
        if not hasattr(kept, "batch_select_indices"):
            raise SaeSweepError(f"{self.name} keeps no keys and values between tokens: it cannot sample text")
        return found.logits[:, -1].float(), preallocated(kept) if cache is None else kept

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
            tokens: sequences; a large batch is run in parts to limit the memory of the logits.
            layer: layer whose `resid_pre` is replaced.
            replace: computes the replacement from the residual of each part; None replaces nothing.
            residual: that `resid_pre` from an earlier pass over the same batch; if the model allows it, this
                pass begins there, with the same result.
        """
        patch = None
        if replace is not None:
            if layer is None:
                raise ValueError("replace needs the layer whose residual it replaces")
            self.check([layer], tokens.shape[1])
            patch = Patch(layer, replace, residual)
        at_once = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * self._vocabulary))
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
