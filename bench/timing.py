"""Shared parts of the benchmarks: a clock that waits for the device, and argument types."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, including what it queues on the device."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def sizes(text: str) -> list[int]:
    return [positive(word) for word in text.split(",")]


def fail(why: object) -> NoReturn:
    """Exits with an error of one line."""
    sys.exit(f"{Path(sys.argv[0]).name}: error: " + "; ".join(str(why).splitlines()))
