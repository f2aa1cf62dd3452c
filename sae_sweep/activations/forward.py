"""Forward passes of a language model: through TransformerBridge, or through the transformers model if equal.

The bridge computes attention step by step so that every part can be hooked, which costs time and memory that
residuals do not need. The transformers model has the same weights and uses fused attention (SDPA). It is used
if its residuals equal the bridge's on a few sequences; otherwise the bridge is.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from sae_sweep.config import first_line
from sae_sweep.text.packing import TextTokenizer

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a token's residual, relative to its norm, that counts as rounding. On gpt2-pico and
SmolLM2, SDPA and eager attention differed by 1e-5, 6e-3 and 6e-2, and each was as far from float32. Without
the causal mask they differed by 1 and 87, with an attention scale 10% off by 0.1 and 0.6."""

_PROBE = (4, 64)
"""Number of sequences that the two models are compared on, and their largest length."""

Replace = Callable[[Float[Tensor, "b s d_model"]], Float[Tensor, "b s d_model"]]
"""Computes the replacement of a residual."""

_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
"""A forward pre-hook with keyword arguments, as torch calls it."""


class Patch(NamedTuple):
    """A change of the residual stream in a forward pass."""

    layer: int
    """Layer whose `resid_pre` is replaced."""
    replace: Replace
    residual: Float[Tensor, "b s d_model"] | None = None
    """That `resid_pre`, if it is known from an earlier pass: this one may begin there."""

    def part(self, start: int, count: int) -> "Patch":
        """Return the same patch for `count` of the sequences, from `start` on."""
        return self._replace(residual=None if self.residual is None else self.residual[start : start + count])


class Forward(Protocol):
    """A language model as a function of tokens, which are on its device; callers turn gradients off."""

    @property
    def network(self) -> nn.Module:
        """The transformers model, through which all passes go."""
        ...

    @property
    def attention(self) -> str:
        """eager or sdpa, whose results differ in their last bits."""
        ...

    @property
    def fell_back(self) -> str | None:
        """Why attention is not the fused one, if that was wanted."""
        ...

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        """Return `resid_pre` of each layer, from a pass that stops at the last of them."""
        ...

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Float[Tensor, "b s v"]:
        """Return the logits, with one layer's `resid_pre` replaced if there is a patch."""
        ...


class BridgeForward:
    """Forward passes through TransformerBridge, which forces eager attention."""

    attention = "eager"

    def __init__(self, bridge: Any, fell_back: str | None = None) -> None:
        self.fell_back = fell_back
        self.network: nn.Module = bridge.original_model
        self._bridge = bridge
        self.blocks: Sequence[nn.Module] = bridge.blocks

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        last = max(layers)
        captured: dict[int, Tensor] = {}

        def capture(layer: int) -> Callable[..., None]:
            def hook_fn(residual: Tensor, hook: Any) -> None:
                del hook
                captured[layer] = residual

            return hook_fn

        hooks = [(_hook_name(layer), capture(layer)) for layer in set(layers) - {last}]
        # a pass that stops at a layer returns that layer's residual, and does not call its hook
        captured[last] = self._bridge.run_with_hooks(
            tokens, fwd_hooks=hooks, stop_at_layer=last, use_cache=False
        )
        return captured

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Tensor:
        if patch is None:
            return self._bridge(tokens, use_cache=False)

        def splice(residual: Tensor, hook: Any) -> Tensor:
            del hook
            return patch.replace(residual).to(residual.dtype)

        # a whole pass: even with `start_at_layer`, the bridge would run the earlier blocks
        hooks = [(_hook_name(patch.layer), splice)]
        return self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)


class SdpaForward:
    """Forward passes through the transformers model with fused attention; an exception stops them early."""

    attention = "sdpa"
    fell_back = None

    def __init__(self, network: Any, blocks: str) -> None:
        """Prepare a model that has no other user.

        Args:
            network: the model; its attention becomes SDPA, and its GELU one operation instead of eight.
            blocks: name of the submodule that is its list of blocks.

        Raises:
            ValueError: if the model does not support SDPA.
        """
        network.set_attn_implementation("sdpa")
        network.config.pad_token_id = None  # else each pass looks for padding, and waits for the device
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, nn.GELU(approximate="tanh"))
        self.network: nn.Module = network
        self._begins: dict[int, bool] = {}
        """Results of `_can_begin_at` by layer."""
        self.blocks: Sequence[nn.Module] = network.get_submodule(blocks)

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        last = max(layers)
        captured: dict[int, Tensor] = {}

        def capture(layer: int) -> _Hook:
            def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                del block
                captured[layer] = args[0] if args else kwargs["hidden_states"]
                if layer == last:
                    raise _StopPass

            return hook

        with self._hooked({layer: capture(layer) for layer in set(layers)}), suppress(_StopPass):
            self.network(tokens, use_cache=False)
        return captured

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Tensor:
        if patch is None:
            return self._run(tokens)
        layer, replace, residual = patch
        if residual is not None and self._can_begin_at(layer, tokens[:2, :16]):
            return self._run_from(layer, tokens, lambda _: replace(residual))
        with self._hooked({layer: _replacing(replace)}):
            return self._run(tokens)

    def _run(self, tokens: Int[Tensor, "b s"]) -> Tensor:
        return self.network(tokens, use_cache=False).logits

    def _run_from(self, layer: int, tokens: Int[Tensor, "b s"], replace: Replace) -> Tensor:
        with self._skipped(layer), self._hooked({layer: _replacing(replace)}):
            return self._run(tokens)

    def _can_begin_at(self, layer: int, tokens: Int[Tensor, "b s"]) -> bool:
        """Return whether a pass from a layer on equals a whole pass bit for bit; tried once per layer."""
        if layer not in self._begins:
            residual = self.residuals(tokens, [layer])[layer]
            whole = self._run(tokens)
            self._run(tokens.flip(1))  # blocks that remember an earlier pass now remember other tokens
            try:
                same = torch.equal(self._run_from(layer, tokens, lambda _: residual), whole)
                why = "other bits"
            except Exception as error:  # blocks that pass on more than the residual fail in any way
                same, why = False, first_line(error)
            if not same:
                log.info("evaluation in whole passes: none can begin at layer %d (%s)", layer, why)
            self._begins[layer] = same
        return self._begins[layer]

    @contextmanager
    def _skipped(self, layers: int) -> Iterator[None]:
        """Make the first `layers` blocks return their input."""
        skipped = [(block, vars(block).get("forward")) for block in self.blocks[:layers]]
        for block, _ in skipped:
            block.forward = _return_input
        try:
            yield
        finally:
            for block, own in skipped:
                if own is None:
                    del block.forward
                else:
                    block.forward = own

    @contextmanager
    def _hooked(self, hooks: Mapping[int, _Hook]) -> Iterator[None]:
        """Register a pre-hook on the block of each layer."""
        handles = [
            self.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)
            for layer, hook in hooks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _StopPass(Exception):  # noqa: N818 - not an error
    """Ends a forward pass whose last requested residual is captured."""


def _replacing(replace: Replace) -> _Hook:
    """Return a pre-hook that replaces a block's input, in the dtype of that input."""

    def hook(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del block
        if args:
            return (replace(args[0]).to(args[0].dtype), *args[1:]), kwargs
        residual = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": replace(residual).to(residual.dtype)}

    return hook


def _return_input(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def copy_sharing_weights(network: nn.Module) -> nn.Module | str:
    """Copy a model without its weights, before TransformerBridge rebuilds it; the reason if that fails."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        return copy.deepcopy(network, shared)
    except Exception as error:  # as below
        return _unusable(error)


@torch.no_grad()
def choose_forward(
    bridge: Any, network: nn.Module | str | None, tokenizer: TextTokenizer, dtype: torch.dtype
) -> Forward:
    """Choose how a model is run: `network` with SDPA if its residuals equal the bridge's, else the bridge.

    Args:
        bridge: the model's TransformerBridge.
        network: the transformers model, why there is none, or None if fused attention is not wanted.
        tokenizer: its tokenizer, for the sequences that the two are compared on.
        dtype: dtype of its arithmetic.
    """
    if isinstance(network, str):
        return _eager(bridge, network)
    if network is None:
        return BridgeForward(bridge)
    try:
        sdpa = SdpaForward(network, bridge.adapter.component_mapping["blocks"].name)
        tokens = _probe(bridge, tokenizer)
        difference = _difference(
            BridgeForward(bridge), sdpa, tokens, _masked(tokens, tokenizer), bridge.cfg.n_layers
        )
    except Exception as error:  # each architecture fails in its own way; the bridge runs all of them
        return _eager(bridge, _unusable(error))
    if difference <= TOLERANCE[dtype]:
        return sdpa
    return _eager(bridge, f"SDPA's residuals differ by {difference:.1e}, more than {TOLERANCE[dtype]:.0e}")


def _eager(bridge: Any, why: str) -> Forward:
    log.info("eager attention: %s", why)
    return BridgeForward(bridge, why)


def _unusable(error: Exception) -> str:
    return f"the transformers model cannot be used ({first_line(error).split('. ')[0]})"


def _probe(bridge: Any, tokenizer: TextTokenizer) -> Int[Tensor, "b s"]:
    """Return random tokens after a BOS, with one EOT among them."""
    count, length = _PROBE[0], min(_PROBE[1], bridge.cfg.n_ctx)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(bridge.cfg.d_vocab, (count, length), generator=generator)
    tokens[:, 0] = tokenizer.bos_id
    tokens[0, length // 2] = tokenizer.eot_id
    return tokens.to(bridge.cfg.device)


def _masked(tokens: Int[Tensor, "b s"], tokenizer: TextTokenizer) -> Bool[Tensor, "b s"]:
    """Positions of special tokens, whose residuals nobody reads."""
    return torch.isin(tokens, torch.tensor(sorted(tokenizer.special_ids), device=tokens.device))


def _difference(
    one: Forward, other: Forward, tokens: Int[Tensor, "b s"], masked: Bool[Tensor, "b s"], n_layers: int
) -> float:
    """Return the largest relative difference of a token's residual in two layers; NaN if any is NaN.

    A masked token that is NaN in `one` is left out.
    """
    layers = sorted({n_layers // 2, n_layers - 1})
    expected, actual = one.residuals(tokens, layers), other.residuals(tokens, layers)
    each = [_relative(actual[layer].float(), expected[layer].float(), masked) for layer in layers]
    return float(torch.stack(each).max())


def _relative(
    actual: Float[Tensor, "b s d_model"], expected: Float[Tensor, "b s d_model"], masked: Bool[Tensor, "b s"]
) -> Float[Tensor, "b s"]:
    """Norm of each token's difference over its expected norm; 0 where both are 0, as of a padding token."""
    off, norm = (actual - expected).norm(dim=-1), expected.norm(dim=-1)
    return (off / norm).masked_fill((off == 0) | (masked & norm.isnan()), 0.0)


def _hook_name(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"
