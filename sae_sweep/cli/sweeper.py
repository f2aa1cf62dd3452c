"""Our sweeper as a Hydra plugin that lives inside this package: it composes the runs and calls the task."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sae_sweep.cli.compose import compose, compose_first
from sae_sweep.config import ConfigError
from sae_sweep.config.checks import one_of
from sae_sweep.tasks import TASKS, composes_runs, load

_HYDRA_DEFAULT = "basic"
"""Hydra's default launcher; with it, the groups are trained by ours."""


class GridSweeper(Sweeper):
    """Every launch is a sweep: it reads the whole command and hands it to its task."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._context = hydra_context
        self._task_function = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Carry out the command.

        Raises:
            ConfigError: all problems of the command at once.
            SystemExit: with 1 if a run failed; Hydra itself drops what a sweep returns.
        """
        task = self._config.task
        problems: list[str] = []
        one_of(problems, "task", task, tuple(TASKS))
        if problems:
            raise ConfigError(problems)
        read = compose if composes_runs(task, self._config.action) else compose_first
        request = read(arguments, self._config, self._context.config_loader, self._launch)
        if load(TASKS[task].function)(request):
            raise SystemExit(1)

    @property
    def _launch(self) -> Any:
        """What launches jobs if the command names another launcher than ours; else None."""
        if self._config.hydra.runtime.choices["hydra/launcher"] == _HYDRA_DEFAULT:
            return None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task_function, config=self._config
        )
        return lambda job_overrides: launcher.launch(job_overrides, initial_job_idx=0)


def register_sweeper() -> None:
    """Make `hydra/sweeper` know `sae_sweep`; Hydra instantiates only plugins below `hydra_plugins`."""
    alias = f"hydra_plugins.sae_sweep.{GridSweeper.__name__}"
    plugins = Plugins.instance()
    plugins.register(GridSweeper)
    plugins.class_name_to_class[alias] = GridSweeper
    ConfigStore.instance().store(group="hydra/sweeper", name="sae_sweep", node={"_target_": alias})
