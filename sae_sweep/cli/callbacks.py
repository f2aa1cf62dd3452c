"""What happens when a multirun ends."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sae_sweep.cli.session import current


class CompareRuns(Callback):
    """Compares every pair of finished SAEs of the sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        del config, kwargs
        session = current()
        if session.plan is None or session.plan.config.task != "train":
            return
        if session.plan.config.launcher.detach:
            return  # nothing is done yet
        try:
            session.compare(session.plan)
        except BaseException as error:  # Hydra would turn it into a warning and exit 0
            session.errors.append(error)
