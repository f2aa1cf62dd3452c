"""Output paths, atomic writes, locks, status and plan files."""

from sae_sweep.store.atomic import (
    disk_error,
    disk_errors,
    regular,
    write_atomic,
    write_bytes,
    write_folder_atomic,
    write_text,
)
from sae_sweep.store.config_file import read_config
from sae_sweep.store.faults import fail, fault_line, log_traceback, report_unfinished, settle
from sae_sweep.store.locks import Lease, hold, hold_sweep, is_held, lock_folder
from sae_sweep.store.metrics import Metrics, read_metrics, write_metrics
from sae_sweep.store.partial import is_partial, remove_partials
from sae_sweep.store.paths import RunFolder, SweepFolder, cache_folder, find_sweep
from sae_sweep.store.plan_file import PlannedRun, planned_run, read_plan
from sae_sweep.store.records import is_present, read_json, read_record, unreadable, write_json, write_record
from sae_sweep.store.status import (
    DAMAGED,
    Status,
    freeze,
    is_complete,
    prepare,
    prepared,
    provenance,
    read_shown_status,
    read_status,
    readable,
    report_failed,
    set_state,
    state,
    unfinished,
)

__all__ = [
    "DAMAGED",
    "Lease",
    "Metrics",
    "PlannedRun",
    "RunFolder",
    "Status",
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
    "is_present",
    "lock_folder",
    "log_traceback",
    "planned_run",
    "prepare",
    "prepared",
    "provenance",
    "read_config",
    "read_json",
    "read_metrics",
    "read_plan",
    "read_record",
    "read_shown_status",
    "read_status",
    "readable",
    "regular",
    "remove_partials",
    "report_failed",
    "report_unfinished",
    "set_state",
    "settle",
    "state",
    "unfinished",
    "unreadable",
    "write_atomic",
    "write_bytes",
    "write_folder_atomic",
    "write_json",
    "write_metrics",
    "write_record",
    "write_text",
]
