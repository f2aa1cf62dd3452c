"""The two presets of DESIGN.md §5, by name."""

from sae_sweep.config import Config
from sae_sweep.ops import Kernels
from sae_sweep.saes import modern, study
from sae_sweep.saes.base import SAE
from sae_sweep.saes.objectives import Objective, Rules

RULES: dict[str, Rules] = {"modern": modern.ModernRules(), "study": study.StudyRules()}
_OBJECTIVES = {"modern": modern.OBJECTIVES, "study": study.OBJECTIVES}


def build_objective(sae: SAE, config: Config, kernels: Kernels | None = None) -> Objective:
    """What `sae` is trained to do under its numerics: through `kernels`, or by the dense formulas."""
    kinds = _OBJECTIVES[sae.numerics]
    return kinds[sae.architecture.kind](sae, config, RULES[sae.numerics], kernels)
