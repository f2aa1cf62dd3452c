"""Matching of dictionaries, evaluation on held-out text, comparison of many SAEs; torch is all it needs."""

from sae_sweep.analysis.bootstrap import bootstrap_interval, bootstrap_means
from sae_sweep.analysis.comparison import Comparison, compare
from sae_sweep.analysis.evaluation import Autoencoder, Evaluation, evaluate
from sae_sweep.analysis.losses import Baselines, LanguageModelLosses, language_model_baselines
from sae_sweep.analysis.matching import MatchResult, match, match_to_init
from sae_sweep.analysis.pairs import COSINE_EDGES, ComparisonEntry, PairRow
from sae_sweep.analysis.statistics import Histogram
from sae_sweep.analysis.summary import SEVERAL, KeyContrast, KeySummary

__all__ = [
    "COSINE_EDGES",
    "SEVERAL",
    "Autoencoder",
    "Baselines",
    "Comparison",
    "ComparisonEntry",
    "Evaluation",
    "Histogram",
    "KeyContrast",
    "KeySummary",
    "LanguageModelLosses",
    "MatchResult",
    "PairRow",
    "bootstrap_interval",
    "bootstrap_means",
    "compare",
    "evaluate",
    "language_model_baselines",
    "match",
    "match_to_init",
]
