"""Where an SAE starts: the dictionary that a seed draws, and the decoder bias that the data suggests."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweep.config import ArchitectureConfig, Config, JumpReLUConfig
from sae_sweep.saes.architectures import SAES
from sae_sweep.saes.base import SAE
from sae_sweep.saes.presets import RULES

_WEISZFELD_STEPS = 100
_WEISZFELD_TOLERANCE = 1e-5


def init_seed(config: Config, run_id: str) -> int:
    """The seed of the initial dictionary: `config.seed`, or the run's own where `init.shared` is off."""
    if config.init.shared:
        return config.seed
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:7])


def build_sae(architecture: ArchitectureConfig, d_in: int, d_sae: int, *, seed: int, numerics: str) -> SAE:
    """A fresh SAE (DESIGN.md §5): equal seeds at equal size share their dictionary, whatever else differs."""
    sae = SAES[architecture.kind](architecture, d_in, d_sae, numerics)
    with torch.no_grad():
        sae.W_enc.copy_(_initial_encoder(d_in, d_sae, seed))
        sae.W_dec.copy_(_decoder_of(sae.W_enc))
        if isinstance(architecture, JumpReLUConfig):
            usual = RULES[numerics].initial_threshold
            sae.get_parameter("threshold").fill_(architecture.initial_threshold or usual)
    return sae


def initial_decoder(d_in: int, d_sae: int, seed: int) -> Float[Tensor, "d_sae d_in"]:
    """The unit decoder rows that every SAE of this size and seed starts from."""
    return _decoder_of(_initial_encoder(d_in, d_sae, seed))


def _initial_encoder(d_in: int, d_sae: int, seed: int) -> Float[Tensor, "d_in d_sae"]:
    # torch takes the last dimension, d_sae, for the fan-in. So the entries have variance 2 / d_sae, and a
    # normalised input (norm² = d_in) gives pre-activations of variance 2 / expansion factor. The study's
    # trainer draws these very numbers, on the CPU and first after seeding; nothing rescales them.
    generator = torch.Generator().manual_seed(seed)
    return nn.init.kaiming_uniform_(torch.empty(d_in, d_sae), generator=generator)


def _decoder_of(W_enc: Tensor) -> Tensor:
    rows = W_enc.t().contiguous()
    return rows / rows.norm(dim=-1, keepdim=True)


def initial_b_dec(xn: Float[Tensor, "batch d_in"], how: str) -> Float[Tensor, " d_in"]:
    """The decoder bias that `init.b_dec` asks for, from the first batch in SAE-input space."""
    starts = {"zero": lambda x: x.new_zeros(x.shape[-1]), "mean": _mean, "geometric_median": geometric_median}
    return starts[how](xn)


def _mean(xn: Tensor) -> Tensor:
    return xn.mean(dim=0)


def geometric_median(points: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The point of least summed distance to all others, by Weiszfeld's iteration (definitions.md 1.1)."""
    guess = points.mean(dim=0)
    for _ in range(_WEISZFELD_STEPS):
        # A guess that sits on a point has distance 0 to it; the floor keeps its weight finite.
        weights = 1 / (points - guess).norm(dim=-1).clamp(min=1e-12)
        moved = (weights / weights.sum()) @ points
        if (moved - guess).norm() < _WEISZFELD_TOLERANCE:
            return moved
        guess = moved
    return guess
