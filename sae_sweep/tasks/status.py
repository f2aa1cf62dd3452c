"""`task=status sweep=NAME`: shows the progress of each run of a sweep; only reads files."""

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sae_sweep.config import SaeSweepError, typed
from sae_sweep.launch.slurm import active_jobs
from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import describe_status, short_names
from sae_sweep.store import (
    DAMAGED,
    RunFolder,
    Status,
    SweepFolder,
    find_sweep,
    read_plan,
    read_shown_status,
    regular,
    shown_state,
)
from sae_sweep.store.paths import CHECKPOINTS
from sae_sweep.tracking.history import latest_points

log = logging.getLogger(__name__)

STATES = ("done", "running", "failed", "interrupted", "pending", DAMAGED)
_DAMAGED_RUN: Mapping[str, Any] = {
    "state": DAMAGED,
    **dict.fromkeys(("since", "age_s", "tokens", "budget", "tokens_per_s", "eta_s"), None),
    "mixed": [],
}
_LONGEST_HEADER = 2**20
_POINTS_OF_RATE = 10
"""Number of latest logged points that the shown speed is averaged over."""


def show_status(request: Request) -> int:
    """Run `task=status`: print the progress in `format`; returns 0, also when runs have failed.

    Raises:
        SaeSweepError: listing the sweeps on disk, if the command names none of them.
    """
    document = progress(find_sweep(request.command), time.time())
    as_json = request.command.format == "json"
    text = json.dumps(document, indent=2) if as_json else describe_status(document)
    show(text + "\n")
    return 0


def progress(folder: SweepFolder, now: float) -> dict[str, Any]:
    """The progress as JSON values: `format=json` prints them, and the text is made from them.

    Args:
        folder: folder of the sweep, with `plan.json`.
        now: current time, in seconds since 1970.
    """
    plan = read_plan(folder)
    try:
        in_jobs = {run_id for ticket in active_jobs(folder) for run_id in ticket.run_ids}
    except SaeSweepError as error:
        log.error("jobs are left out: %s", error)
        in_jobs = set()
    runs = [
        {**_run(planned, folder.run(planned["name"]), now, in_jobs), "short": short}
        for planned, short in zip(plan["runs"], short_names(plan["runs"]), strict=True)
    ]
    states = [run["state"] for run in runs]
    return {
        "sweep": plan["sweep"],
        "folder": str(folder.root),
        "runs": runs,
        "counts": {state: states.count(state) for state in STATES},
    }


def _run(
    planned: Mapping[str, Any], folder: RunFolder, now: float, in_jobs: Collection[str]
) -> dict[str, Any]:
    try:
        shown = _readable_run(planned, folder, now, in_jobs)
    except SaeSweepError as damage:
        shown = {**_DAMAGED_RUN, "error": _first_line(str(damage))}
    return {"name": planned["name"], "id": planned["id"], **shown, "log": str(folder.log)}


def _readable_run(
    planned: Mapping[str, Any], folder: RunFolder, now: float, in_jobs: Collection[str]
) -> dict[str, Any]:
    """State and progress of a run. Raises SaeSweepError if a file of it is damaged."""
    budget = typed(planned["config"].get("tokens"), int, f"plan.json: tokens of {planned['name']}")
    status = read_shown_status(folder, planned["id"])
    state = shown_state(status, folder, in_jobs=planned["id"] in in_jobs)
    if state != "running":
        _refuse_lost_history(folder)
    points = latest_points(folder.history)
    tokens = status.tokens or (points[-1]["tokens"] if points else 0)
    since = status.since
    speed = _speed(status, state, points, _seconds(since))
    return {
        "state": state,
        "since": since,
        "age_s": None if since is None else max(0.0, round(now - _seconds(since), 1)),
        "tokens": tokens,
        "budget": budget,
        "tokens_per_s": None if speed is None else round(speed, 1),
        "eta_s": round((budget - tokens) / speed, 1) if speed and state == "running" else None,
        "mixed": list(status.mixed),
        "error": _first_line(status.error) if state == "failed" else None,
    }


def _refuse_lost_history(folder: RunFolder) -> None:
    """Raise SaeSweepError if the history lacks what was logged before the newest checkpoint."""
    logged = _logged_bytes(folder.checkpoint / CHECKPOINTS[0])
    there = folder.history.stat().st_size if folder.history.is_file() else 0
    if there < logged:
        raise SaeSweepError(
            f"{folder.history} is damaged (it has {there:,} bytes, and {logged:,} were logged): put it back "
            "as it was, or delete the run's folder to train it again"
        )


def _logged_bytes(checkpoint: Path) -> int:
    """Length of the history at a checkpoint, from the header of its file; 0 if that cannot be read."""
    try:
        with regular(checkpoint).open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)))
        return int(json.loads(header["__metadata__"]["progress"])["history"]["bytes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0  # there is none, or launching the run says what is wrong with it


def _speed(status: Status, state: str, points: Sequence[Mapping[str, Any]], since: float) -> float | None:
    """SAE inputs per second: recent speed of a running run, mean speed of a run that has ended."""
    if state != "running":
        return status.tokens / status.seconds if status.tokens and status.seconds else None
    # points from before a resume do not count: no training happened in between
    recent = [point for point in points if point["time"] >= since][-_POINTS_OF_RATE:]
    if len(recent) < 2 or recent[-1]["time"] <= recent[0]["time"]:
        return None
    return (recent[-1]["tokens"] - recent[0]["tokens"]) / (recent[-1]["time"] - recent[0]["time"])


def _seconds(moment: str | None) -> float:
    return 0.0 if moment is None else datetime.fromisoformat(moment).timestamp()


def _first_line(error: str | None) -> str:
    return next(iter((error or "").strip().splitlines()), "no reason was written")
