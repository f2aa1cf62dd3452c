"""Activation streams of a group: computed on demand, or read from the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sae_sweep.activations import ActivationStream, LanguageModel
from sae_sweep.activations.cache import CachedStream, CacheFolder, cache_identity, fill, locate
from sae_sweep.store import PlannedRun
from sae_sweep.store.resolved import Resolved
from sae_sweep.text import Text, training_sequences
from sae_sweep.training.data import Stream

StreamMaker = Callable[[Sequence[int]], Stream]
"""Function that opens an activation stream of given layers at its start."""


def stream_maker(
    lm: LanguageModel, source: Text, runs: Sequence[PlannedRun], cache: Path, resolved: Resolved
) -> StreamMaker:
    """Function that opens a group's streams; with `activations=cache`, the cache is filled first."""
    if runs[0].config.activations.source == "cache":
        folder = fill_cache(lm, source, runs, cache, resolved)
        return lambda layers: CachedStream(folder, layers, lm.device)
    return _computed(lm, source, runs[0])


def fill_cache(
    lm: LanguageModel, source: Text, runs: Sequence[PlannedRun], cache: Path, resolved: Resolved
) -> CacheFolder:
    """Cache every layer of a group for its longest run; returns the cache's folder.

    It can be interrupted at any time; complete shards are kept.

    Raises:
        SaeSweepError: if the disk is too small, or the cache cannot be used.
    """
    shared = runs[0]
    identity = cache_identity(shared.config, shared.fingerprints, resolved)
    folder = locate(cache, identity)
    steps = max(run.config.steps for run in runs)
    fill(
        folder,
        identity,
        {run.config.layer: steps for run in runs},
        _computed(lm, source, shared),
        d_in=lm.d_model,
        batch=shared.config.batch,
        names={"model": shared.config.model.label, "dataset": shared.config.dataset.name},
    )
    return folder


def _computed(
    lm: LanguageModel, source: Text, shared: PlannedRun
) -> Callable[[Sequence[int]], ActivationStream]:
    def make(layers: Sequence[int]) -> ActivationStream:
        config = shared.config
        sequences = training_sequences(source, config.packing, lm.tokenizer, config.data_seed)
        return ActivationStream(lm, sequences, config, layers)

    return make
