"""Starting Hydra: parses the command line and provides the function that Hydra calls."""

import sys
from pathlib import Path
from typing import Any

import hydra

from sae_sweep import logs
from sae_sweep.cli.compose import to_configs
from sae_sweep.cli.diagnose import diagnose
from sae_sweep.cli.schema import conf_folder, register_schemas
from sae_sweep.cli.sweeper import carry_out, register_sweeper
from sae_sweep.config import ConfigError
from sae_sweep.launch.foreign import JOB_KEY
from sae_sweep.plan import Request, WantedRun


def run() -> None:
    """Carry out the command line.

    Raises:
        ConfigError: all problems of the command at once.
        SystemExit: with 1 if a run failed.
    """
    register_schemas()
    register_sweeper()
    problems = diagnose([word for word in sys.argv[1:] if not word.startswith("-")])
    if problems:
        raise ConfigError(problems)
    decorate = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    decorate(task_function)()


def task_function(config: Any) -> None:
    """Hydra's task function: trains a job of one of Hydra's launchers, or one run with `hydra.mode=RUN`.

    A job may run in a fresh process, which imports this function by name. `config.job` names the frozen group
    to train.
    """
    job = config.get(JOB_KEY)
    if job is None:
        run_config, command = to_configs(config)
        carry_out(Request(command, [WantedRun(run_config, run_config)]))
        return
    from sae_sweep.launch.job import run_job

    logs.log_to_terminal()
    run_job(Path(job.folder), int(job.number))
