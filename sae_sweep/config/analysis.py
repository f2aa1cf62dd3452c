"""Settings of `task=analyse`."""

from dataclasses import dataclass

from sae_sweep.config.checks import INT32, Limit, count, number, number_problems, one_of, random_seed

FIGURES = ("own", "paper", "none")
INTERVENTIONS = {"none": (), "zero": ("zero",), "shuffle": ("shuffle",), "both": ("zero", "shuffle")}
"""Changes of the positional embeddings, by value of `analysis.positions`."""
_NUMERICS = ("modern", "study")
_CONTEXTS = Limit(1000, "at most 1000 (contexts per feature)")
_AROUND = Limit(1000, "at most 1000 (tokens)")
_REPEATS = Limit(100_000, "at most 100000 (repetitions)")


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of `task=analyse`: which text is read, and how much of it is kept for each feature."""

    tokens: int = count(100_000, most=INT32)
    """Held-out tokens that are read; fewer if there are fewer."""
    seq_len: int | None = number(None, least=4, most=INT32)
    """Tokens per sequence, at most the model's context; null: as in training."""
    top: int = count(20, most=_CONTEXTS)
    """Contexts of the highest activations, at most one of each sequence."""
    sample: int = count(50, most=_CONTEXTS)
    """Contexts of activations sampled uniformly: a tenth (rounded up) from each decile of a feature's."""
    before: int = number(12, least=0, most=_AROUND)
    """Tokens of a context before the one on which the feature fires."""
    after: int = number(6, least=0, most=_AROUND)
    """Tokens after it."""
    positions: str = "none"
    """Learned positional embeddings that are zeroed or shuffled, beside the model as it is: none, zero,
    shuffle or both."""
    per_sequence: bool = True
    """shuffle: true: a permutation for each sequence (the study). false: one for all, which only moves what a
    position explains."""
    move_first: bool = False
    """Whether the first position is zeroed and shuffled too (the study): models anchor on it."""
    permutations: int = count(100, most=_REPEATS)
    """Permutations of positions that a position feature must exceed, and resamples of the intervals."""
    seed: int = random_seed(0)
    """Seed of samples, permutations and the UMAP."""
    numerics: str = "modern"
    """study: what the study's scripts do. Special tokens count; labels and losses as in its figures."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "analysis.").values())
        one_of(found, "analysis.positions", self.positions, tuple(INTERVENTIONS))
        one_of(found, "analysis.numerics", self.numerics, _NUMERICS)
        return found
