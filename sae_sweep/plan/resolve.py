"""What `auto` dtypes and `normalisation=auto` become: part of a run's id, so fixed before it."""

import dataclasses
from collections.abc import Callable

from sae_sweep.config import LauncherConfig, RunConfig


def resolve_dtypes(run: RunConfig, launcher: LauncherConfig) -> RunConfig:
    """Replace `auto` dtypes by those that the run is trained in.

    auto is float32 with `numerics=study`. Otherwise it is bfloat16 where the training machine is fast at it,
    else float32. SLURM's nodes are not asked: jobs with GPUs count as fast, jobs without as slow.

    Raises:
        SaeSweepError: if this machine is to train the run and lacks its `device`.
    """
    lm = run.model.dtype
    if lm == "auto":
        lm = "bfloat16" if run.numerics != "study" and _fast_bfloat16(run.device, launcher) else "float32"
    activations = run.activations.dtype if run.activations.dtype != "auto" else lm
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, dtype=lm),
        activations=dataclasses.replace(run.activations, dtype=activations),
    )


def resolve_normalisation(run: RunConfig, of_start: Callable[[str], str]) -> RunConfig:
    """Replace normalisation=auto by that of the SAE of `init.sae`, or by layer_norm without one.

    Args:
        run: the run.
        of_start: function from an `init.sae` to how that SAE normalises.

    Raises:
        SaeSweepError: if that SAE cannot be read.
    """
    if run.normalisation != "auto":
        return run
    found = "layer_norm" if run.init.sae is None else of_start(run.init.sae)
    return dataclasses.replace(run, normalisation=found)


def _fast_bfloat16(device: str, launcher: LauncherConfig) -> bool:
    if launcher.kind == "slurm":
        return launcher.slurm.gpus > 0 and device != "cpu"
    from sae_sweep.activations.device import fast_bfloat16, pick_device  # torch, which SLURM's users wait for

    return fast_bfloat16(pick_device(device))
