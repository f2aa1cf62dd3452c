"""Entry point of `python -m sae_sweep` and `sae-sweep`: only wiring."""

import os
import sys
from collections.abc import Callable, Sequence

from sae_sweep import logs
from sae_sweep.cli import app
from sae_sweep.cli.sweeper import TaskError
from sae_sweep.config import ConfigError, Interrupted, SaeSweepError, first_line

USAGE_ERROR = 2


def main() -> None:
    """Run the command line and exit with 0 (all done), 1 (a run failed) or 2 (usage or config error)."""
    logs.log_to_terminal()
    sys.exit(_exit_code(app.run))


def _exit_code(run: Callable[[], None]) -> int:
    """Run `run`; print one line per error and return the exit code."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing
    try:
        run()
    except ConfigError as error:
        return _print_problems(error.problems, USAGE_ERROR)
    except SaeSweepError as error:
        return _print_problems([str(error)], 1)
    except KeyboardInterrupt:
        return _print_problems(["stopped by SIGINT before there was anything to save"], 130)
    except Interrupted as stop:
        return _print_problems([str(stop)], 128 + stop.signum)
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


if __name__ == "__main__":
    main()
