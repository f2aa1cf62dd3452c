"""Settings of `task=analyse`."""

from dataclasses import dataclass

from sae_sweep.config.checks import INT32, Limit, count, number, number_problems

_CONTEXTS = Limit(1000, "at most 1000 (contexts per feature)")
_AROUND = Limit(1000, "at most 1000 (tokens)")


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of `task=analyse`: how much text is read, and how much of it is kept for each feature."""

    tokens: int = count(100_000, most=INT32)
    """Held-out tokens that are read; fewer if there are fewer."""
    top: int = count(20, most=_CONTEXTS)
    """Contexts of the highest activations, at most one of each sequence."""
    sample: int = count(50, most=_CONTEXTS)
    """Contexts of activations sampled uniformly, at most one of each sequence."""
    before: int = number(12, least=0, most=_AROUND)
    """Tokens of a context before the one on which the feature fires."""
    after: int = number(6, least=0, most=_AROUND)
    """Tokens after it."""

    def problems(self) -> list[str]:
        return list(number_problems(self, "analysis.").values())
