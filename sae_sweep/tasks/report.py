"""Writes `report.html` of a sweep: after every comparison and analysis, and with `task=report sweep=NAME`."""

import logging
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sae_sweep.logs import show
from sae_sweep.report import files_text
from sae_sweep.report.page.build import Page, write_page
from sae_sweep.store import SweepFolder, hold_sweep

log = logging.getLogger(__name__)

_NONE: Mapping[str, Any] = MappingProxyType({})


def show_report(
    folder: SweepFolder, more: Mapping[str, Path] = _NONE, left_out: Mapping[str, str] = _NONE
) -> None:
    """Write the page of a sweep, and print its answer and the files worth opening, `more` of them last.

    `left_out` are lines for the page about runs that are damaged, by name, which were logged before.

    Raises:
        SaeSweepError: as `write_report`.
    """
    page = _write(folder, left_out)
    width = min(100, shutil.get_terminal_size(fallback=(100, 24)).columns)
    show(f"{textwrap.fill(page.sentence, width)}\n\n{files_text({**_files(page), **more})}\n")


def write_report(folder: SweepFolder, left_out: Mapping[str, str] = _NONE) -> dict[str, Path]:
    """Write the page of a sweep; returns the files that are worth opening, by what they show.

    `left_out` are lines for the page about runs that are damaged, by name, which were logged before. What
    else the page leaves out because a file is damaged is logged.

    Raises:
        SaeSweepError: if the plan is damaged, or a file cannot be written.
    """
    return _files(_write(folder, left_out))


def _write(folder: SweepFolder, left_out: Mapping[str, str]) -> Page:
    with hold_sweep(folder):
        page = write_page(folder, list(left_out.values()))
    logged = [f"/{name}/" for name in left_out]
    for problem in page.problems:
        if not any(name in problem for name in logged):
            log.warning("left out of report.html: %s", problem)
    return page


def _files(page: Page) -> dict[str, Path]:
    return {"report": page.path} | ({} if page.details is None else {"its details": page.details})
