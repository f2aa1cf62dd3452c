"""Sections of the page that other parts of the package write: a title, tables and figures, as a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_sweep.config import ConfigError, SaeSweepError, build
from sae_sweep.report.page.figures import image
from sae_sweep.report.page.runs import Runs
from sae_sweep.store import read_record, unreadable, write_record

_FILE = "section.json"
_REMEDY = "run the task that wrote it again"


Cell = str | bool | float | None


@dataclass(frozen=True)
class Table:
    """A table of a section."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """Text, or numbers, which are aligned to the right; None is an empty cell. A column of empty cells is not
    shown."""
    note: str = ""
    digits: int | None = None
    """Decimals of all numbers; None: as many as each column needs."""
    folded: bool = False
    """Whether only its title is shown until a reader opens it."""


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    text: str
    runs: tuple[str, ...]
    """Names of the runs that it is about; it is shown only while all of them are in the sweep and done."""
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    """Captions by file name, relative to the folder of the section."""


def write_section(folder: Path, section: Section) -> Path:
    """Write a section into a folder below the sweep's `analysis/`, for every later `report.html`.

    Raises:
        SaeSweepError: if it cannot be written; it is not left incomplete.
    """
    path = folder / _FILE
    write_record(path, asdict(section))
    return path


def read_section(folder: Path) -> Section:
    """Read the section that a folder below the sweep's `analysis/` holds.

    Raises:
        SaeSweepError: if it is missing or damaged.
    """
    path = folder / _FILE
    try:
        section: Section = build(Section, read_record(path, _REMEDY))
    except ConfigError as error:
        raise unreadable(path, error, _REMEDY) from error
    return section


def read_sections(runs: Runs, problems: list[str]) -> list[dict[str, Any]]:
    """Read the sections of a sweep; a damaged one is named among `problems`."""
    done = {runs.names[place] for place in runs.done()}
    found = []
    for path in sorted(runs.folder.root.glob(f"analysis/*/{_FILE}")):
        try:
            section = read_section(path.parent)
            if not set(section.runs) <= done:
                problems.append(f"{path} is of other runs: {_REMEDY}")
                continue
            found.append(asdict(section) | {"figures": _images(path.parent, section.figures, problems)})
        except SaeSweepError as error:
            problems.append(str(error))
    return found


def _images(folder: Path, figures: Mapping[str, str], problems: list[str]) -> Sequence[Mapping[str, Any]]:
    images = []
    for name, caption in figures.items():
        try:
            images.append(image(folder / name, caption))
        except OSError as error:
            problems.append(str(unreadable(folder / name, error, _REMEDY)))
    return images
