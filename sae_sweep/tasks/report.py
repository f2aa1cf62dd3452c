"""Writes `report.html` of a sweep: after every comparison and analysis, and with `task=report sweep=NAME`."""

import logging
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from sae_sweep.logs import show
from sae_sweep.plan import Request
from sae_sweep.report import files_text
from sae_sweep.report.page.build import Page, write_page
from sae_sweep.store import SweepFolder, find_sweep, hold_sweep

log = logging.getLogger(__name__)


def report(request: Request) -> int:
    """Write the page and print the answer; returns 0.

    Raises:
        SaeSweepError: if there is no such sweep, or its plan is damaged.
    """
    show_report(find_sweep(request.command))
    return 0


def show_report(
    folder: SweepFolder, more: Mapping[str, Path] = MappingProxyType({}), left_out: Sequence[str] = ()
) -> None:
    """Write the page of a sweep, and print its answer and the files worth opening, `more` of them last.

    `left_out` are lines about runs whose SAE is damaged, for the page.

    Raises:
        SaeSweepError: as `write_report`.
    """
    page = _write(folder, left_out)
    width = min(100, shutil.get_terminal_size(fallback=(100, 24)).columns)
    show(f"{textwrap.fill(page.sentence, width)}\n\n{files_text({**_files(page), **more})}\n")


def write_report(folder: SweepFolder, left_out: Sequence[str] = ()) -> dict[str, Path]:
    """Write the page of a sweep; returns the files that are worth opening, by what they show.

    `left_out` are lines about runs whose SAE is damaged, for the page. What else the page leaves out because
    a file is damaged is logged.

    Raises:
        SaeSweepError: if the plan is damaged, or a file cannot be written.
    """
    return _files(_write(folder, left_out))


def _write(folder: SweepFolder, left_out: Sequence[str]) -> Page:
    with hold_sweep(folder):
        page = write_page(folder, left_out)
    for problem in page.problems:
        log.warning("left out of report.html: %s", problem)
    return page


def _files(page: Page) -> dict[str, Path]:
    return {"report": page.path} | ({} if page.details is None else {"its details": page.details})
