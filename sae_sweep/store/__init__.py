"""Output paths, atomic writes, locks, status and plan files."""

from sae_sweep.store.atomic import (
    disk_error,
    disk_errors,
    read_json,
    write_atomic,
    write_bytes,
    write_folder_atomic,
    write_json,
    write_text,
)
from sae_sweep.store.faults import fail, fault_line, log_traceback, settle
from sae_sweep.store.locks import Lease, hold, hold_sweep, is_held, lock_folder
from sae_sweep.store.partial import is_partial, remove_partials
from sae_sweep.store.paths import RunFolder, SweepFolder, cache_folder, find_sweep
from sae_sweep.store.plan_file import PlannedRun, read_plan
from sae_sweep.store.status import (
    freeze,
    is_complete,
    prepare,
    provenance,
    read_status,
    report_failed,
    set_state,
    state,
    unfinished,
)

__all__ = [
    "Lease",
    "PlannedRun",
    "RunFolder",
    "SweepFolder",
    "cache_folder",
    "disk_error",
    "disk_errors",
    "fail",
    "fault_line",
    "find_sweep",
    "freeze",
    "hold",
    "hold_sweep",
    "is_complete",
    "is_held",
    "is_partial",
    "lock_folder",
    "log_traceback",
    "prepare",
    "provenance",
    "read_json",
    "read_plan",
    "read_status",
    "remove_partials",
    "report_failed",
    "set_state",
    "settle",
    "state",
    "unfinished",
    "write_atomic",
    "write_bytes",
    "write_folder_atomic",
    "write_json",
    "write_text",
]
