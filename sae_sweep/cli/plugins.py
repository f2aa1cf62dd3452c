"""Our sweeper and launcher as Hydra plugins that live inside this package."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sae_sweep.cli.compose import compose, compose_first
from sae_sweep.cli.session import current
from sae_sweep.config import needs_plan
from sae_sweep.plan.plan import make_plan


class GridSweeper(Sweeper):
    """Composes every run once, merges the ones that are the same, and hands the plan on."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        session = current()
        loader = self.hydra_context.config_loader
        if not needs_plan(self.config.task, self.config.action):
            config = compose_first(arguments, self.config, loader)
            session.composing = False
            session.failed += session.answer(config)
            return []
        runs = compose(arguments, self.config, loader)
        session.composing = False
        session.plan = make_plan(
            [run.config for run in runs],
            [run.reference for run in runs],
            session.fingerprints,
            [run.grids for run in runs],
            runs[0].union,
        )
        if isinstance(self.launcher, PlanLauncher):
            return self.launcher.launch([], initial_job_idx=0)  # the plan says it all
        if session.hand_over is not None and self.config.task == "train":
            session.failed += session.hand_over(session.plan, self._launch_foreign)
        else:
            session.failed += session.execute(session.plan)
        return []

    def _launch_foreign(self, job_overrides: list[list[str]]) -> None:
        if job_overrides:
            self.launcher.launch(job_overrides, initial_job_idx=0)


class PlanLauncher(Launcher):
    """Carries out the session's plan in this process; the configs were composed by the sweeper."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        del hydra_context, task_function, config  # everything is in the plan

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        del job_overrides, initial_job_idx
        session = current()
        if session.plan is not None:
            session.failed += session.execute(session.plan)
        return []


def register_plugins() -> None:
    """Make `hydra/sweeper` and `hydra/launcher` know `sae_sweep`.

    Hydra instantiates only plugins below `hydra_plugins`, so each class gets an alias there.
    """
    plugins = Plugins.instance()
    store = ConfigStore.instance()
    for group, cls in (("hydra/sweeper", GridSweeper), ("hydra/launcher", PlanLauncher)):
        alias = f"hydra_plugins.sae_sweep.{cls.__name__}"
        plugins.register(cls)
        plugins.class_name_to_class[alias] = cls
        store.store(group=group, name="sae_sweep", node={"_target_": alias})
