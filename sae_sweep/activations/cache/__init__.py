"""The activation cache: activations computed once and read by any number of runs.

There is one folder per stream and one shard per buffer. Rows are stored in training order and in the
activation dtype, so training from the cache and from the stream is bit-identical, and a run can resume from
either.
"""

from sae_sweep.activations.cache.inventory import CacheEntry, Removed, inventory, prune, remove, verify
from sae_sweep.activations.cache.layout import CacheFolder, cache_identity, locate
from sae_sweep.activations.cache.reader import CachedStream
from sae_sweep.activations.cache.shards import DamagedShardError
from sae_sweep.activations.cache.writer import fill

__all__ = [
    "CacheEntry",
    "CacheFolder",
    "CachedStream",
    "DamagedShardError",
    "Removed",
    "cache_identity",
    "fill",
    "inventory",
    "locate",
    "prune",
    "remove",
    "verify",
]
