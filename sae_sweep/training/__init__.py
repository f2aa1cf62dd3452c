"""Training with Lightning: groups of SAEs that share each batch of activations."""

from sae_sweep.training.checkpoint import begun, discard_checkpoint
from sae_sweep.training.faults import GroupTooLargeError, border, device_failed, explain
from sae_sweep.training.group import train_group
from sae_sweep.training.member import GroupSettings, Member, MetricSink, Outcome
from sae_sweep.training.memory import free_bytes, refuse_too_large, release, split

__all__ = [
    "GroupSettings",
    "GroupTooLargeError",
    "Member",
    "MetricSink",
    "Outcome",
    "begun",
    "border",
    "device_failed",
    "discard_checkpoint",
    "explain",
    "free_bytes",
    "refuse_too_large",
    "release",
    "split",
    "train_group",
]
