"""Activation streams of a group: computed as they are needed, or read from the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sae_sweep.activations import ActivationStream, LanguageModel
from sae_sweep.activations.cache import CachedStream, CacheFolder, cache_identity, fill, locate
from sae_sweep.activations.stream import activation_dtype
from sae_sweep.store import PlannedRun
from sae_sweep.text import TextSource, TrainingSequences
from sae_sweep.training.data import Stream

StreamMaker = Callable[[Sequence[int]], Stream]
"""Makes a stream of some layers, at its beginning."""


def stream_maker(
    lm: LanguageModel, source: TextSource, runs: Sequence[PlannedRun], cache: Path
) -> StreamMaker:
    """The maker of a group's streams; `activations=cache` fills the cache first."""
    if runs[0].config.activations.source == "cache":
        folder = fill_cache(lm, source, runs, cache)
        return lambda layers: CachedStream(folder, layers, lm.device)
    return _computed(lm, source, runs[0])


def fill_cache(lm: LanguageModel, source: TextSource, runs: Sequence[PlannedRun], cache: Path) -> CacheFolder:
    """Cache every layer of a group as far as its longest run goes; returns where.

    It may be cut anywhere: the shards that are complete stay.

    Raises:
        SaeSweepError: if the disk is too small, or the cache cannot be used.
    """
    shared = runs[0]
    dtype = activation_dtype(shared.config, lm)
    identity = cache_identity(
        shared.config, shared.fingerprints, lm_dtype=lm.dtype, attention=lm.attention, dtype=dtype
    )
    folder = locate(cache, identity)
    steps = max(run.config.steps for run in runs)
    fill(
        folder,
        identity,
        {run.config.layer: steps for run in runs},
        _computed(lm, source, shared),
        d_in=lm.d_model,
        batch=shared.config.batch,
    )
    return folder


def _computed(
    lm: LanguageModel, source: TextSource, shared: PlannedRun
) -> Callable[[Sequence[int]], ActivationStream]:
    def make(layers: Sequence[int]) -> ActivationStream:
        config = shared.config
        sequences = TrainingSequences(source, config.packing, lm.tokenizer, config.data_seed)
        return ActivationStream(lm, sequences, config, layers)

    return make
