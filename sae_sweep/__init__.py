"""Train grids of sparse autoencoders (SAEs) and find out which features belong to the language model.

In a notebook: `import sae_sweep as ss`, then `ss.open_sweep`, `ss.load_sae` and `ss.match`. They are loaded
when they are first used, so that the command line does not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_sweep.analysis.matching import MatchResult, match
    from sae_sweep.config.errors import SaeSweepError
    from sae_sweep.results import Sweep, open_sweep
    from sae_sweep.saes import SAE, load_sae

__version__ = "0.1.0"

_HOMES = {
    "SAE": "saes",
    "MatchResult": "analysis.matching",
    "SaeSweepError": "config.errors",
    "Sweep": "results",
    "load_sae": "saes",
    "match": "analysis.matching",
    "open_sweep": "results",
}

__all__ = ["SAE", "MatchResult", "SaeSweepError", "Sweep", "load_sae", "match", "open_sweep"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
