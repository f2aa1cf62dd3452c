"""Launchers train groups of runs: in this process, in local workers, on SLURM, or through Hydra's own."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker process imports this before it can handle signals
    from sae_sweep.plan import Plan, Request
    from sae_sweep.signals import StopRequest


class Launcher(Protocol):
    """Trains the runs of a plan."""

    def train(self, plan: "Plan", stop: "StopRequest") -> bool:
        """Train every run that is not done yet and record the results in the runs' status.

        Returns:
            True once all jobs have ended, False if they still run (`launcher.detach`).

        Raises:
            SaeSweepError: if a run's folder is in use or holds another run, or the jobs are refused.
            Interrupted: if a signal asked to stop; the runs can be resumed.
        """
        ...


def open_launcher(request: "Request") -> Launcher:
    """The launcher that the command names; the others are not imported."""
    if request.launch is not None:
        from sae_sweep.launch.foreign import Foreign

        return Foreign(request.launch)
    kind = request.command.launcher.kind
    if kind == "inprocess":
        from sae_sweep.launch.inprocess import InProcess

        return InProcess()
    from sae_sweep.launch.jobs import Jobs

    if kind == "local":
        from sae_sweep.launch.local import Local

        return Jobs(Local)
    from sae_sweep.launch.slurm import Slurm

    return Jobs(Slurm)
