"""The command line: `python -m sae_sweep` and `sae-sweep`. Nothing but wiring."""

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra

from sae_sweep import logs
from sae_sweep.cli import session as sessions
from sae_sweep.cli.diagnose import diagnose
from sae_sweep.cli.plugins import register_plugins
from sae_sweep.cli.schema import conf_folder, register_schemas
from sae_sweep.cli.session import Session
from sae_sweep.config import Config, ConfigError, Interrupted, SaeSweepError
from sae_sweep.launch.foreign import task_function
from sae_sweep.plan.plan import Plan

USAGE_ERROR = 2


def _execute(plan: Plan) -> int:
    from sae_sweep import tasks  # torch and friends load here, not for --help

    return tasks.execute(plan)


def _answer(config: Config) -> int:
    from sae_sweep import tasks

    return tasks.answer(config)


def _compare(plan: Plan) -> None:
    from sae_sweep import tasks

    tasks.compare(plan)


def _hand_over(plan: Plan, launch: Callable[[list[list[str]]], Any]) -> int:
    from sae_sweep.launch import foreign

    return foreign.hand_over(plan, launch)


def _fingerprints(config: Config) -> dict[str, str]:
    from sae_sweep import tasks

    return tasks.fingerprints(config)


def _once_each(fingerprints: Callable[[Config], dict[str, str]]) -> Callable[[Config], dict[str, str]]:
    """Of the same text and model once a command: their files may be large."""
    known: dict[Any, dict[str, str]] = {}

    def remembered(config: Config) -> dict[str, str]:
        key = (config.model, config.dataset, config.paths)
        if key not in known:
            known[key] = fingerprints(config)
        return known[key]

    return remembered


def main() -> None:
    """Run the command line and exit with 0 (all done), 1 (a run failed) or 2 (usage or config error)."""
    logs.log_to_terminal()
    register_schemas()
    register_plugins()
    session = Session(
        execute=_execute,
        answer=_answer,
        compare=_compare,
        fingerprints=_once_each(_fingerprints),
        hand_over=_hand_over,
    )
    sessions.begin(session)
    sys.exit(_guarded(session, _hydra_main()))


def _hydra_main() -> Callable[[], Any]:
    decorate = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    return decorate(task_function)  # by this name the jobs of other launchers import it


def _guarded(session: Session, run: Callable[[], Any]) -> int:
    """Call Hydra, and turn whatever happens into one line an error and an exit code."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing
    problems = diagnose([word for word in sys.argv[1:] if not word.startswith("-")], conf_folder())
    if problems:
        return _complain(problems, USAGE_ERROR)
    try:
        run()
        for error in session.errors:
            raise error
    except ConfigError as error:
        return _complain(error.problems, USAGE_ERROR)
    except SaeSweepError as error:
        return _complain([str(error)], 1)
    except KeyboardInterrupt:
        return _complain(["stopped by SIGINT before there was anything to save"], 130)
    except Interrupted as stop:
        return _complain([str(stop)], 128 + stop.signum)
    except Exception as error:
        if wants_traceback or not session.composing:
            raise
        return _complain([_first_line(error)], USAGE_ERROR)
    return 1 if session.failed else 0


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _complain(problems: Any, exit_code: int) -> int:
    for problem in problems:
        sys.stderr.write(f"sae_sweep: {problem}\n")
    return exit_code


if __name__ == "__main__":
    main()
