"""One pass of a language model: through TransformerBridge, or through the plain model where that is equal.

The bridge computes attention step by step so that every part of it can be hooked, which costs time and memory
that residuals do not need. The plain model shares its weights, calls fused attention, and is taken where a
probe finds it equal; everywhere else the bridge runs as before.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from sae_sweep.config import first_line
from sae_sweep.text.packing import TextTokenizer

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a token's residual, relative to its norm, that is taken for rounding. On gpt2-pico
and SmolLM2 SDPA and eager were 1e-5, 6e-3 and 6e-2 apart, and either was as far from float32; without the
causal mask they were 1 and 87 apart, with a scale 10% off 0.1 and 0.6."""

_PROBE = (4, 64)
"""Sequences and their length at most."""

Replace = Callable[[Float[Tensor, "b s d_model"]], Float[Tensor, "b s d_model"]]
"""What a residual is replaced by."""


class Patch(NamedTuple):
    """What is done to the residual stream in a pass."""

    layer: int
    """Whose `resid_pre` is replaced."""
    replace: Replace
    residual: Float[Tensor, "b s d_model"] | None = None
    """What it would be, where that is known: a pass may begin there."""

    def part(self, start: int, count: int) -> "Patch":
        """The same for some of the sequences."""
        return self._replace(residual=None if self.residual is None else self.residual[start : start + count])


class Forward(Protocol):
    """A language model as a function of its tokens, on its device; gradients are the caller's business."""

    @property
    def attention(self) -> str:
        """eager or sdpa: part of what determines the bits."""
        ...

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        """`resid_pre` of each layer, in a pass that goes no further than the last of them."""
        ...

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Float[Tensor, "b s v"]:
        """Logits, with one layer's `resid_pre` replaced."""
        ...


class BridgeForward:
    """Through TransformerBridge, which forces eager attention."""

    attention = "eager"

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        self.blocks: Sequence[nn.Module] = bridge.blocks

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        last = max(layers)
        found: dict[int, Tensor] = {}

        def keeper(layer: int) -> Callable[..., None]:
            def keep(residual: Tensor, hook: Any) -> None:
                del hook
                found[layer] = residual

            return keep

        hooks = [(_hook(layer), keeper(layer)) for layer in set(layers) - {last}]
        # stopping at a layer never runs its own hook: what comes back is that residual
        found[last] = self._bridge.run_with_hooks(
            tokens, fwd_hooks=hooks, stop_at_layer=last, use_cache=False
        )
        return found

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Tensor:
        if patch is None:
            return self._bridge(tokens, use_cache=False)

        def splice(residual: Tensor, hook: Any) -> Tensor:
            del hook
            return patch.replace(residual).to(residual.dtype)

        # a whole pass: from `start_at_layer`, the bridge would run the blocks before it all the same
        return self._bridge.run_with_hooks(tokens, fwd_hooks=[(_hook(patch.layer), splice)], use_cache=False)


class SdpaForward:
    """Through the model of transformers itself, with fused attention; stopped by an exception."""

    attention = "sdpa"

    def __init__(self, network: Any, blocks: str) -> None:
        """Take over a model that nothing else uses.

        Args:
            network: the model; its attention becomes SDPA, and its GELU one operation instead of eight.
            blocks: where its list of blocks is.

        Raises:
            ValueError: if its attention cannot be SDPA.
        """
        network.set_attn_implementation("sdpa")
        network.config.pad_token_id = None  # else each pass looks for padding, and waits for the device
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, nn.GELU(approximate="tanh"))
        self._network = network
        self._begins: dict[int, bool] = {}
        self.blocks: Sequence[nn.Module] = network.get_submodule(blocks)

    def residuals(self, tokens: Int[Tensor, "b s"], layers: Sequence[int]) -> dict[int, Tensor]:
        last = max(layers)
        found: dict[int, Tensor] = {}

        def keeper(layer: int) -> Replace:
            def keep(residual: Tensor) -> Tensor:
                found[layer] = residual
                if layer == last:
                    raise _Reached
                return residual

            return keep

        with self._hooked({layer: keeper(layer) for layer in set(layers)}), suppress(_Reached):
            self._network(tokens, use_cache=False)
        return found

    def logits(self, tokens: Int[Tensor, "b s"], patch: Patch | None) -> Tensor:
        if patch is None:
            return self._run(tokens)
        layer, replace, residual = patch
        if residual is not None and self._can_begin_at(layer, tokens[:2, :16]):
            return self._run_from(layer, tokens, lambda _: replace(residual))
        with self._hooked({layer: replace}):
            return self._run(tokens)

    def _run(self, tokens: Int[Tensor, "b s"]) -> Tensor:
        return self._network(tokens, use_cache=False).logits

    def _run_from(self, layer: int, tokens: Int[Tensor, "b s"], replace: Replace) -> Tensor:
        with self._skipped(layer), self._hooked({layer: replace}):
            return self._run(tokens)

    def _can_begin_at(self, layer: int, tokens: Int[Tensor, "b s"]) -> bool:
        """Whether a pass that begins at a layer ends in the bits of a whole one: tried once."""
        if layer not in self._begins:
            residual = self.residuals(tokens, [layer])[layer]
            whole = self._run(tokens)
            self._run(tokens.flip(1))  # whatever blocks remember is now of other tokens
            try:
                same = torch.equal(self._run_from(layer, tokens, lambda _: residual), whole)
                why = "other bits"
            except Exception as error:  # blocks that hand on more than the residual, each in a way of its own
                same, why = False, first_line(error)
            if not same:
                log.info("evaluation in whole passes: none can begin at layer %d (%s)", layer, why)
            self._begins[layer] = same
        return self._begins[layer]

    @contextmanager
    def _skipped(self, layers: int) -> Iterator[None]:
        """Let the first blocks hand on what they are given."""
        skipped = [(block, vars(block).get("forward")) for block in self.blocks[:layers]]
        for block, _ in skipped:
            block.forward = _hand_on
        try:
            yield
        finally:
            for block, own in skipped:
                if own is None:
                    del block.forward
                else:
                    block.forward = own

    @contextmanager
    def _hooked(self, inputs: Mapping[int, Replace]) -> Iterator[None]:
        """Put what a function makes of it in the place of the input of each of these blocks."""
        hooks = [
            self.blocks[layer].register_forward_pre_hook(_on_input(replace), with_kwargs=True)
            for layer, replace in inputs.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Reached(Exception):  # noqa: N818 - no error: the last layer that is wanted
    """Ends a pass."""


def _on_input(replace: Replace) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del block
        if args:
            return (replace(args[0]).to(args[0].dtype), *args[1:]), kwargs
        residual = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": replace(residual).to(residual.dtype)}

    return hook


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def copy_sharing_weights(network: nn.Module) -> nn.Module | None:
    """A second model on the same weights, as TransformerBridge rebuilds the first; None if it has no copy."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        return copy.deepcopy(network, shared)
    except Exception as error:  # as below
        _stay_eager(error)
        return None


@torch.no_grad()
def choose_forward(
    bridge: Any, twin: nn.Module | None, tokenizer: TextTokenizer, dtype: torch.dtype
) -> Forward:
    """Return the twin where its residuals equal the bridge's on a few sequences, else the bridge."""
    eager = BridgeForward(bridge)
    if twin is None:
        return eager
    try:
        plain = SdpaForward(twin, bridge.adapter.component_mapping["blocks"].name)
        distance = _distance(eager, plain, _probe(bridge, tokenizer), bridge.cfg.n_layers)
    except Exception as error:  # every architecture refuses in a way of its own; the bridge runs all of them
        _stay_eager(error)
        return eager
    if distance <= TOLERANCE[dtype]:
        return plain
    log.info("eager attention: SDPA's residuals differ by %.1e, more than %.0e", distance, TOLERANCE[dtype])
    return eager


def _stay_eager(error: Exception) -> None:
    log.info("eager attention: the plain model cannot be used (%s)", first_line(error))


def _probe(bridge: Any, tokenizer: TextTokenizer) -> Int[Tensor, "b s"]:
    """Random tokens behind BOS, with an EOT among them."""
    count, length = _PROBE[0], min(_PROBE[1], bridge.cfg.n_ctx)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(bridge.cfg.d_vocab, (count, length), generator=generator)
    tokens[:, 0] = tokenizer.bos_id
    tokens[0, length // 2] = tokenizer.eot_id
    return tokens.to(bridge.cfg.device)


def _distance(one: Forward, other: Forward, tokens: Int[Tensor, "b s"], n_layers: int) -> float:
    """Largest difference of a token's residual, in the middle and before the last block; NaN if any is."""
    layers = sorted({n_layers // 2, n_layers - 1})
    expected, found = one.residuals(tokens, layers), other.residuals(tokens, layers)
    each = [
        (found[layer].float() - expected[layer].float()).norm(dim=-1) / expected[layer].float().norm(dim=-1)
        for layer in layers
    ]
    return float(torch.stack(each).max())


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"
