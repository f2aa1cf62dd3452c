"""Activations: batches of a language model's residual stream; the only part that knows TransformerLens.

Importing this package is cheap: torch and TransformerLens are imported with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_sweep.activations.device import lm_dtype, pick_device
    from sae_sweep.activations.loading import load_language_model
    from sae_sweep.activations.model import LanguageModel, LMSizes
    from sae_sweep.activations.model_files import weights_fingerprint
    from sae_sweep.activations.stream import ActivationBatch, ActivationStream, BadActivationsError

_HOMES = {
    "ActivationStream": "stream",
    "BadActivationsError": "stream",
    "ActivationBatch": "stream",
    "LMSizes": "model",
    "LanguageModel": "model",
    "lm_dtype": "device",
    "load_language_model": "loading",
    "pick_device": "device",
    "weights_fingerprint": "model_files",
}

__all__ = [
    "ActivationBatch",
    "ActivationStream",
    "BadActivationsError",
    "LMSizes",
    "LanguageModel",
    "lm_dtype",
    "load_language_model",
    "pick_device",
    "weights_fingerprint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
