"""Which key of ours changes what SLURM refused, or lets wait."""

from sae_sweep.config import SlurmConfig

_KEYS = {
    "memory": ("mem_gb",),
    "node configuration": ("mem_gb", "cpus", "gpus", "partition", "extra"),
    "cpu count": ("cpus",),
    "processors": ("cpus",),
    "partition": ("partition",),
    "account": ("account",),
    "qos": ("qos",),
    "time limit": ("time_min",),
    "timelimit": ("time_min",),
    "badconstraints": ("cpus", "mem_gb", "gpus", "partition", "extra"),
    "partitionconfig": ("cpus", "mem_gb", "gpus", "partition", "extra"),
    "nodelimit": ("partition",),
    "assoc": ("account",),
    "gres": ("gpus",),
    "generic resource": ("gpus",),
    "feature": ("extra",),
    "constraint": ("extra",),
    "reservation": ("extra",),
    "option": ("extra",),
    "policy": ("time_min", "cpus", "mem_gb", "gpus", "qos"),
    "job array": ("array_parallelism",),
}
"""Keys of `launcher.slurm` by words of SLURM's messages and of its reasons for which jobs wait."""
_NO_SLURM = ("srun", "sbatch")
"""Programs without which this machine has no SLURM."""


def remedy(refusal: str, config: SlurmConfig) -> str:
    """What to do about SLURM's message; empty if no key of ours has to do with it."""
    message = refusal.lower()
    if any(program in message for program in _NO_SLURM) and (
        "detect" in message or "no such file" in message
    ):
        return "run it on a machine that can submit jobs, or choose launcher=local or launcher=inprocess"
    keys = list(dict.fromkeys(key for words, names in _KEYS.items() if words in message for key in names))
    if not keys:
        return ""
    values = ", ".join(f"launcher.slurm.{key} ({_value(getattr(config, key))})" for key in keys)
    return f"what asks for it: {values}"


def _value(value: object) -> str:
    return "now the cluster's default" if value in (None, {}) else f"now {value}"
