"""Runs one part of tools/gpu_check.py in a process of its own, so that a fault of the device ends no other.

    python tools/gpu_parts.py steps --device cuda --seconds 60 --out FILE

Each result is a line of JSON in FILE, written as soon as it is known.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_commands
import gpu_kernels
import gpu_steps
import torch
from gpu_setting import Setting

PARTS: dict[str, Callable[[Setting], None]] = {
    "kernels": gpu_kernels.kernels,
    "steps": gpu_steps.steps,
    "dense": gpu_steps.dense,
    "lm": gpu_steps.language_models,
    "bits": gpu_commands.bits,
    "quickstart": gpu_commands.quickstart,
    "gpt2-small": gpu_commands.gpt2_small,
    "suite": gpu_commands.suite,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    keys = parser.parse_args()
    with keys.out.open("a") as file:

        def put(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        began = time.perf_counter()
        try:
            PARTS[keys.part](Setting(torch.device(keys.device), keys.seconds, put))
        except Exception as error:
            line = next(iter(str(error).strip().splitlines()), "")
            put({"failed": f"{type(error).__name__}: {line}", "traceback": traceback.format_exc()})
            sys.exit(1)
        put({"seconds": time.perf_counter() - began})


if __name__ == "__main__":
    main()
