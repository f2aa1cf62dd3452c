"""Training with Lightning: groups of SAEs that share each batch of activations."""

from sae_sweep.config import Interrupted
from sae_sweep.training.checkpoint import discard_checkpoint
from sae_sweep.training.group import train_group
from sae_sweep.training.member import Member, Outcome

__all__ = ["Interrupted", "Member", "Outcome", "discard_checkpoint", "train_group"]
