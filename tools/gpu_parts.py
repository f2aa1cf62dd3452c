"""Runs one part of tools/gpu_check.py in a process of its own, so that a fault of the device ends no other.

    python tools/gpu_parts.py steps --device cuda --seconds 60 --out FILE

Each result is a line of JSON in FILE, written as soon as it is known.
"""

import argparse
import faulthandler
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_commands
import gpu_kernels
import gpu_steps
import psutil
import torch
from gpu_setting import Cut, Setting

PARTS: dict[str, Callable[[Setting], None]] = {
    "kernels": gpu_kernels.kernels,
    "steps": gpu_steps.steps,
    "dense": gpu_steps.dense,
    "lm": gpu_steps.language_models,
    "bits": gpu_commands.bits,
    "quickstart": gpu_commands.quickstart,
    "gpt2-small": gpu_commands.gpt2_small,
    "analyse": gpu_commands.analyse,
    "suite": gpu_commands.suite,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    keys = parser.parse_args()
    _say_where_at_the_end(keys.seconds - _age_s())
    with keys.out.open("a") as file:

        def put(record: dict[str, Any]) -> None:
            file.write(json.dumps({**record, "at_s": _age_s()}) + "\n")
            file.flush()

        try:
            torch.zeros(1, device=keys.device).item()
            put({"ready": True})
            PARTS[keys.part](Setting(torch.device(keys.device), keys.seconds, put))
        except Cut:
            put({"cut": "by its time", "traceback": traceback.format_exc()})
            sys.exit(1)
        except Exception as error:
            line = next(iter(str(error).strip().splitlines()), "")
            put({"failed": f"{type(error).__name__}: {line}", "traceback": traceback.format_exc()})
            sys.exit(1)
        put({"seconds": _age_s()})


def _age_s() -> float:
    """Seconds since this process began, imports included."""
    return time.time() - psutil.Process().create_time()


def _say_where_at_the_end(seconds: float) -> None:
    """Raise `Cut` shortly before the time is up; where no Python runs then, write all stacks to the log."""

    def cut(signum: int, frame: object) -> None:
        raise Cut

    signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, max(0.6 * seconds, seconds - 6.0))
    faulthandler.dump_traceback_later(max(0.8 * seconds, seconds - 2.0))


if __name__ == "__main__":
    main()
