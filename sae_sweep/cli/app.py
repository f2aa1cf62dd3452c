"""Starting Hydra: parses the command line and provides the function that Hydra calls."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sae_sweep import logs
from sae_sweep.cli.arguments import Arguments, read_arguments
from sae_sweep.cli.build import to_configs
from sae_sweep.cli.composer import name_experiment
from sae_sweep.cli.diagnose import diagnose, is_text
from sae_sweep.cli.groups import PRIMARY_CONFIG, Groups, config_loader
from sae_sweep.cli.schema import conf_folder, register_schemas
from sae_sweep.cli.sweeper import carry_out, register_sweeper
from sae_sweep.cli.words import as_typed, key_of, listed_beside_groups
from sae_sweep.config import ConfigError
from sae_sweep.launch.foreign import JOB_KEY
from sae_sweep.plan import Request, WantedRun

_MULTIRUN = r"(?<!\S)(-m|--multirun) "


def run() -> None:
    """Carry out the command line.

    Raises:
        ConfigError: all problems of the command at once.
        SystemExit: with 1 if a run failed.
    """
    register_schemas()
    register_sweeper()
    arguments, parser = read_arguments(sys.argv[1:])
    if arguments.shell_completion:  # its words are no overrides
        _prepare_completion()
    else:
        _read_overrides(arguments)
    if arguments.info:
        logging.getLogger().handlers.clear()  # Hydra shows it through a log handler of its own
    version.setbase("1.3")
    if arguments.is_sweep:
        _sweep(arguments)
    else:
        _run_hydra(arguments, parser, task_function, str(conf_folder()), PRIMARY_CONFIG)


def _sweep(arguments: Arguments) -> None:
    """Start a sweep with Hydra; `_run_hydra` would first compose all of it to look for `hydra.mode`."""
    hydra = Hydra("sae_sweep", config_loader(arguments.config_path, arguments.config_dir))
    overrides = [*arguments.overrides, "hydra.mode=MULTIRUN"]
    GlobalHydra.instance().initialize(hydra)
    try:
        hydra.multirun(arguments.config_name or PRIMARY_CONFIG, task_function, overrides)
    finally:
        GlobalHydra.instance().clear()


def _prepare_completion() -> None:
    """Have Hydra complete the command `sae-sweep` (it completes no `python -m`), also after comma lists."""
    sys.argv[0] = "sae-sweep"
    if "COMP_LINE" in os.environ:
        command, _, rest = os.environ["COMP_LINE"].lstrip().partition(" ")
        os.environ["COMP_LINE"] = f"{command} --multirun {re.sub(_MULTIRUN, '', rest)}"


def _read_overrides(arguments: Arguments) -> None:
    """Check the overrides, and replace them by ones that Hydra reads as they are typed."""
    loader = config_loader(arguments.config_path, arguments.config_dir)
    searchpath = [word for word in arguments.overrides if key_of(word) == "hydra.searchpath"]
    if problems := diagnose(searchpath, Groups(loader)):
        raise ConfigError(problems)
    groups = Groups(loader, arguments.config_name or PRIMARY_CONFIG, searchpath)
    problems = diagnose(arguments.overrides, groups, one_run=bool(arguments.cfg or arguments.info))
    if problems:
        raise ConfigError(problems)
    OmegaConf.register_new_resolver("group_help", groups.listed, replace=True)
    words = [as_typed(word, lambda key: is_text(key, groups)) for word in arguments.overrides]
    arguments.overrides = listed_beside_groups(words, lambda key: bool(groups.choices(key)))


def task_function(config: Any) -> None:
    """Hydra's task function: trains a job of one of Hydra's launchers, or one run with `hydra.mode=RUN`.

    A job may run in a fresh process, which imports this function by name. `config.job` names the frozen group
    to train.
    """
    job = config.get(JOB_KEY)
    if job is None:
        name_experiment(config, HydraConfig.get().runtime.choices.get("experiment"))
        run_config, command = to_configs(config)
        carry_out(Request(command, [WantedRun(run_config, run_config)]))
        return
    from sae_sweep.launch.job import run_job

    logs.log_to_terminal()
    run_job(Path(job.folder), int(job.number))
