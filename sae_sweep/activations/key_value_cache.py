"""A cache of keys and values that are preallocated for the tokens to come.

transformers' own copies all keys and values of a layer for each token.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_AHEAD = 64
"""Tokens for which memory is allocated at once."""


def preallocated(cache: Any) -> Any:
    """The cache with preallocated layers; one of another kind than transformers' plain one as it is."""
    if type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [_PreallocatedLayer(layer) for layer in cache.layers]
    return cache


class _PreallocatedLayer(DynamicLayer):
    """Keys and values that are the first tokens of larger buffers, [b, heads, tokens, d_head].

    What `update` returned is overwritten by the tokens that follow a `crop`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, ...] = ()
        """A buffer of keys and one of values, of which `keys` and `values` are views."""
        if layer.is_initialized:
            self.update(layer.keys, layer.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_keywords: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._holds(end):
            empty = key_states[..., :0, :], value_states[..., :0, :]
            held = (self.keys, self.values) if begin else empty
            self._buffers = tuple(_longer(one, end + _AHEAD) for one in held)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., begin:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def _holds(self, tokens: int) -> bool:
        """Whether the buffers are long enough, and still those of `keys` and `values`."""
        if not self._buffers or self.keys._base is not self._buffers[0]:
            return False
        return tokens <= self._buffers[0].shape[-2]

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = ()  # their memory is free


def _longer(held: Tensor, tokens: int) -> Tensor:
    buffer = held.new_empty(*held.shape[:-2], tokens, held.shape[-1])
    buffer[..., : held.shape[-2], :] = held
    return buffer
