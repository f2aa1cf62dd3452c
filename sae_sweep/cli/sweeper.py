"""The Hydra sweeper of this package: it composes the runs and calls the task."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sae_sweep.cli.compose import compose, compose_first
from sae_sweep.config import SaeSweepError
from sae_sweep.plan import Request
from sae_sweep.signals import Interrupted, stop_signals
from sae_sweep.tasks import composes_runs, find, resumes

_HYDRA_DEFAULT = "basic"
"""Hydra's default launcher; when it is chosen, our own launchers train the groups."""


class TaskError(Exception):
    """An unexpected error of a task, as opposed to one while the command was composed."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(str(cause))


def carry_out(request: Request) -> None:
    """Call the task of a command.

    Raises:
        SaeSweepError: an error the user can fix.
        TaskError: any other error.
        Interrupted: if a signal asked to stop.
        SystemExit: with 1 if a run failed; Hydra ignores the return value of a sweep.
    """
    task = find(request.command.task)  # may import torch: until then a signal ends the process at once
    try:
        with _task_errors(), stop_signals():
            failed = task(request)
    except Interrupted as stop:
        if resumes(request.command.task, request.command.action):
            raise
        raise Interrupted(stop.signum, "launch the same command again: it begins anew") from None
    if failed:
        raise SystemExit(1)


@contextmanager
def _task_errors() -> Iterator[None]:
    """Turn an unexpected error of a task into TaskError."""
    try:
        yield
    except SaeSweepError:
        raise
    except Exception as error:
        raise TaskError(error) from error


class GridSweeper(Sweeper):
    """Reads the whole command and passes it to its task; every launch is a sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._context = hydra_context
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Carry out the command.

        Raises:
            ConfigError: all problems of the command at once.
            SystemExit: with 1 if a run failed.
        """
        read = compose if composes_runs(self._config.task, self._config.action) else compose_first
        request = read(arguments, self._config, self._context.config_loader, self._launch)
        carry_out(request)

    @property
    def _launch(self) -> Any:
        """Function that launches jobs through a Hydra launcher; None if the command chooses none."""
        if self._config.hydra.runtime.choices["hydra/launcher"] == _HYDRA_DEFAULT:
            return None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task_function, config=self._config
        )
        return lambda job_overrides: launcher.launch(job_overrides, initial_job_idx=0)


def register_sweeper() -> None:
    """Register `hydra/sweeper=sae_sweep`; Hydra only instantiates plugins below `hydra_plugins`."""
    alias = f"hydra_plugins.sae_sweep.{GridSweeper.__name__}"
    plugins = Plugins.instance()
    plugins.register(GridSweeper)
    plugins.class_name_to_class[alias] = GridSweeper
    ConfigStore.instance().store(group="hydra/sweeper", name="sae_sweep", node={"_target_": alias})
