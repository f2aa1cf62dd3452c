"""All that is found out about the features of an SAE: what passes collected, and what follows from it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sae_sweep.analysis.cofiring import Partners, partners
from sae_sweep.analysis.features import FeatureAnalysis, PositionAnalysis
from sae_sweep.analysis.logit_effects import LogitEffects, Unembedding, logit_effects
from sae_sweep.analysis.positions import PositionTest, position_test
from sae_sweep.config import SaeSweepError

log = logging.getLogger(__name__)

UNCHANGED = "none"
"""Name of the positional embeddings as they are, among the changes of them."""


@dataclass(frozen=True)
class Settings:
    """How much is found out about each feature."""

    partners: int = 5
    """Features that it fires with."""
    tokens: int = 10
    """Output tokens that it promotes, and that it suppresses."""
    permutations: int = 100
    """Permutations of positions, and resamples of the interval."""
    seed: int = 0


@dataclass(frozen=True)
class FeatureResults:
    """Statistics, text, partners, effects and position tests of an SAE's features."""

    analysis: FeatureAnalysis
    partners: Partners
    effects: LogitEffects | None
    """None if the language model has no unembedding of the usual form."""
    changed: Mapping[str, PositionAnalysis] = field(default_factory=dict)
    """By change of the positional embeddings: zero, shuffle."""
    tests: Mapping[str, PositionTest] = field(default_factory=dict)
    """By change, `none` included; empty if the text is too short for a test."""


def feature_results(
    name: str,
    analysis: FeatureAnalysis,
    changed: Mapping[str, PositionAnalysis],
    unembedding: Unembedding | None,
    settings: Settings | None = None,
    between: Callable[[], None] = lambda: None,
) -> FeatureResults:
    """Derive partners, direct logit effects and position tests.

    Args:
        name: of the SAE, for messages.
        analysis: what a pass over the text collected.
        changed: the same by position, with changed positional embeddings.
        unembedding: of the language model; None if it has none of the usual form.
        settings: how much is found out.
        between: called now and then, to obey a stop.
    """
    settings = settings or Settings()
    tests = {}
    for change, one in {UNCHANGED: analysis, **changed}.items():
        try:
            tests[change] = position_test(
                one.codes,
                one.seq_len,
                permutations=settings.permutations,
                resamples=settings.permutations,
                seed=settings.seed,
                between=between,
            )
        except SaeSweepError as error:
            log.warning("%s: %s", name, error)
    effects = None
    if unembedding is not None:
        effects = logit_effects(analysis.subject.sae.W_dec.detach(), unembedding, settings.tokens, between)
    return FeatureResults(
        analysis=analysis,
        partners=partners(analysis.codes, settings.partners, between),
        effects=effects,
        changed=changed,
        tests=tests,
    )
