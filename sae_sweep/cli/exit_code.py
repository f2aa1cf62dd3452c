"""Runs the command line, and turns what becomes of it into error lines and an exit code."""

import os
import signal
import sys
from collections.abc import Sequence

from sae_sweep import logs
from sae_sweep.cli import app
from sae_sweep.cli.explain import explained
from sae_sweep.cli.sweeper import TaskError
from sae_sweep.config import ConfigError, SaeSweepError
from sae_sweep.signals import Interrupted
from sae_sweep.store.home import provide_home

USAGE_ERROR = 2


def exit_code() -> int:
    """Run the command line; print one line per error.

    Returns:
        0 (all done), 1 (a run failed), 2 (usage or config error), or 128 + the signal that stopped it:
        SIGPIPE's 141 if all was done, but nobody read the result to its end (`| head`).
    """
    code = _run()
    try:
        sys.stdout.flush()  # what Hydra printed
    except BrokenPipeError:
        logs.reader_left()
    except OSError as error:
        code = code or _print_problems([f"cannot write to standard output: {error.strerror or error}"], 1)
    return code or (0 if logs.has_reader() else 128 + signal.SIGPIPE)


def _run() -> int:
    logs.log_to_terminal()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing
    try:
        provide_home()
        app.run()
    except BrokenPipeError:  # Hydra prints without a look at who reads; ours goes through `logs.show`
        logs.reader_left()
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
        return _print_problems([explained(error)], USAGE_ERROR)
    return 0


def _print_problems(problems: Sequence[str], exit_code: int) -> int:
    for problem in problems:
        logs.show_problem(problem)
    return exit_code
