"""Settings of comparisons of SAEs."""

from dataclasses import dataclass, field

from sae_sweep.config.checks import INT32, count, fraction, number_problems, one_of, shown

MATRICES = ("decoder", "encoder", "both")
SIDES = ("features", "neurons")
NULLS = ("random", "rotated", "initial", "tokens")
_MEASURES = ("neighbours", "all")


@dataclass(frozen=True)
class MatchingConfig:
    """Settings of comparisons of SAEs."""

    threshold: float = fraction(0.7)
    """A feature is matched when its best decoder cosine is strictly above this."""
    undertrained: float = fraction(0.1)
    """Nothing is concluded from runs whose match to their own start is above this share: they are marked
    undertrained or, if their start was an SAE (`init.sae`), fine-tuned."""
    measures: str | None = None
    """neighbours: ratio, MMCS and mutual nearest neighbours, from one product of two dictionaries. all: also
    the best assignment, the shared rule and soft matching, which take seconds to minutes a pair. null: all
    for `a` and `b`, neighbours for a sweep."""
    matrix: str = "decoder"
    """Rows that the measures compare: decoder, encoder, or both side by side."""
    side: str = "features"
    """features: d_in entries each. neurons: dimensions of the residual stream, d_sae entries each."""
    absolute: bool = False
    """true: opposite directions are alike. The shared rule and soft matching take the sign all the same."""
    nulls: list[str] = field(default_factory=lambda: ["random"])
    """Dictionaries in whose place a measure would be chance: random, rotated (a turned copy), initial (the
    run's own start), tokens (inputs of the SAE at random tokens; needs `matching.tokens`)."""
    tokens: int | None = count(None, most=INT32)
    """Held-out tokens that are read for what needs the language model: which features fire together, and what
    features do to its loss. null: none."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "matching.").values())
        one_of(found, "matching.matrix", self.matrix, MATRICES)
        one_of(found, "matching.side", self.side, SIDES)
        if self.measures is not None:
            one_of(found, "matching.measures", self.measures, _MEASURES)
        if not isinstance(self.nulls, list | tuple):
            found.append(f"matching.nulls={shown(self.nulls)}: must be a list, such as [random,initial]")
        else:
            for null in self.nulls:
                one_of(found, "matching.nulls", null, NULLS)
            if "tokens" in self.nulls and self.tokens is None:
                found.append("matching.nulls: tokens needs matching.tokens, the number of tokens to read")
        return found
