"""Cached activations: computed once, read by any number of runs; a folder a stream, a shard a buffer.

Rows lie on disk in training order and in the activation dtype, so that training from the cache and from the
stream is the same to the bit, and a run can go on from either.
"""

from sae_sweep.activations.cache.inventory import CacheEntry, inventory, prune, remove, verify
from sae_sweep.activations.cache.layout import CacheFolder, cache_identity, locate
from sae_sweep.activations.cache.reader import CachedStream
from sae_sweep.activations.cache.shards import DamagedShardError
from sae_sweep.activations.cache.writer import fill

__all__ = [
    "CacheEntry",
    "CacheFolder",
    "CachedStream",
    "DamagedShardError",
    "cache_identity",
    "fill",
    "inventory",
    "locate",
    "prune",
    "remove",
    "verify",
]
