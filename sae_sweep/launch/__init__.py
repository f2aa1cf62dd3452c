"""Where groups of runs are trained: in this process, in local workers, on SLURM, through other launchers."""

from typing import Protocol

from sae_sweep.plan import Plan, Request
from sae_sweep.signals import StopRequest


class Launcher(Protocol):
    """Trains a plan somewhere."""

    def train(self, plan: Plan, stop: StopRequest) -> bool:
        """Train every run that is not done yet; how that went is in the runs' status.

        Returns:
            False if the jobs were left to themselves (`launcher.detach`), True after all of them have ended.

        Raises:
            SaeSweepError: if the sweep's folder holds another plan, a run's is held by another process or
                holds another run, or no jobs are taken.
            Interrupted: if a signal asked to stop; what it left behind can be resumed.
        """
        ...


def open_launcher(request: Request) -> Launcher:
    """The launcher that the command names; only what it needs is imported."""
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
