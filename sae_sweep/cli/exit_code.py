"""Runs the command line, and turns what becomes of it into error lines and an exit code."""

import os
from collections.abc import Sequence

from sae_sweep import logs
from sae_sweep.cli import app
from sae_sweep.cli.sweeper import TaskError
from sae_sweep.config import ConfigError, SaeSweepError, first_line
from sae_sweep.signals import Interrupted
from sae_sweep.store.home import provide_home

USAGE_ERROR = 2


def exit_code() -> int:
    """Run the command line; print one line per error.

    Returns:
        0 (all done), 1 (a run failed), 2 (usage or config error), or 128 + the signal that stopped it.
    """
    logs.log_to_terminal()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing
    try:
        provide_home()
        app.run()
    except ConfigError as error:
        return _print_problems(error.problems, USAGE_ERROR)
    except SaeSweepError as error:
        return _print_problems([str(error)], 1)
    except Interrupted as stop:
        return _print_problems([str(stop)], 128 + stop.signum)
    except SystemExit as ended:  # a run failed, or Hydra printed what --help asked for
        if isinstance(ended.code, str):
            raise
        return ended.code or 0
    except TaskError as error:
        raise error.cause from None  # a mistake of ours
    except Exception as error:  # from Hydra and what it reads: the command was not composed yet
        if wants_traceback:
            raise
        return _print_problems([first_line(error)], USAGE_ERROR)
    return 0


def _print_problems(problems: Sequence[str], exit_code: int) -> int:
    for problem in problems:
        logs.show_problem(problem)
    return exit_code
