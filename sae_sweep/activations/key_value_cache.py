"""A cache of keys and values with room for the tokens that follow.

transformers' own copies all keys and values of a layer for each token.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_ROOM = 64
"""Tokens for which room is made at once."""


def with_room(cache: Any) -> Any:
    """The cache with room in each layer; one of another kind than transformers' plain one as it is."""
    if type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [_RoomyLayer(layer) for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """Keys and values that are the first tokens of larger tensors, [b, heads, tokens, d_head]."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self._rooms: tuple[Tensor, ...] = ()
        """Of keys and values; they are stale if the cache's other methods replaced what they hold."""
        if layer.is_initialized:
            self.update(layer.keys, layer.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_keywords: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self._rooms or self.keys._base is not self._rooms[0] or end > self._rooms[0].shape[-2]:
            empty = key_states[..., :0, :], value_states[..., :0, :]
            held = (self.keys, self.values) if begin else empty
            self._rooms = tuple(_with_room(one, end + _ROOM) for one in held)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., begin:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values


def _with_room(held: Tensor, tokens: int) -> Tensor:
    room = held.new_empty(*held.shape[:-2], tokens, held.shape[-1])
    room[..., : held.shape[-2], :] = held
    return room
