"""Sparse autoencoders: four architectures, their training, and their files."""

from sae_sweep.saes.base import SAE, Normalised
from sae_sweep.saes.build import build_sae, init_seed, initial_decoder
from sae_sweep.saes.checksum import sae_fingerprint, tensors_checksum
from sae_sweep.saes.disk import save_sae
from sae_sweep.saes.foreign import Origin
from sae_sweep.saes.learner import Learner
from sae_sweep.saes.open import load_sae, open_sae
from sae_sweep.saes.start import (
    evaluated_start,
    start_fingerprint,
    start_normalisation,
    start_problem,
    starting_decoder,
    starting_sae,
)

__all__ = [
    "SAE",
    "Learner",
    "Normalised",
    "Origin",
    "build_sae",
    "evaluated_start",
    "init_seed",
    "initial_decoder",
    "load_sae",
    "open_sae",
    "sae_fingerprint",
    "save_sae",
    "start_fingerprint",
    "start_normalisation",
    "start_problem",
    "starting_decoder",
    "starting_sae",
    "tensors_checksum",
]
