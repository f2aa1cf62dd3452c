"""What SLURM says of jobs; without its accounting, squeue is all there is to ask."""

import subprocess
from collections.abc import Mapping, Sequence

from sae_sweep.config import SaeSweepError

_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}


def ended(ids: Sequence[str]) -> Mapping[str, str]:
    """How those of the jobs ended that will not go on.

    Raises:
        SaeSweepError: if SLURM cannot be asked.
    """
    states = squeue(ids)
    found = {job: states.get(job, "no longer known to SLURM") for job in ids}
    return {job: state for job, state in found.items() if job not in states or state in _ENDED}


def squeue(ids: Sequence[str]) -> dict[str, str]:
    """Job id -> state, for the jobs that SLURM still knows; it forgets them some minutes after their end.

    Raises:
        SaeSweepError: if SLURM cannot be asked.
    """
    command = ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(arrays(ids)), "-o", "%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SaeSweepError(f"cannot ask SLURM: {error}") from error
    if done.returncode and "Invalid job id" not in done.stderr:  # its word for a job it has forgotten
        raise SaeSweepError(f"cannot ask SLURM: {one_line(done.stderr)}")
    return dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)


def arrays(ids: Sequence[str]) -> list[str]:
    """`4711_0, 4711_1, 4712` -> `4711, 4712`."""
    return list(dict.fromkeys(job.split("_")[0] for job in ids))


def one_line(error: object) -> str:
    """SLURM's own words, without the name of its program."""
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or "no reason given"
