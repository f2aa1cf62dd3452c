"""Grids of an experiment: parsing and checks, their points, and the union of all grids.

common: {init.shared: [true, false]}    # part of every grid
grids:
  - name: sparsity                      # default: grid 1, grid 2, ...
    dataset: [owt, tinystories]         # keys multiply
    zip: {k: [16, 32], layer: [8, 4]}   # these advance together; several: [{...}, {...}]
    exclude: [{dataset: owt, k: 32}]    # points that match all keys of an entry are dropped
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_sweep.config import ConfigError, first_line, short_key
from sae_sweep.tasks import command_class

Values = Mapping[str, Sequence[Any]]
Check = Callable[[str, Sequence[Any]], list[str]]
"""(key, values) -> problems, worded as for the command line."""

NOT_SWEPT = ("grids", "common", "zip", *(key.name for key in dataclasses.fields(command_class())))
"""Keys of the sweep as a whole, which cannot be swept."""
_ZIP_FORM = "write zip=[KEY,KEY], or zip=[[KEY,KEY],[KEY,KEY]], of keys that have comma lists"
RESERVED = ("name", "zip", "exclude")
MOST_RUNS = 100_000
"""Runs of a command; composing so many takes minutes."""


@dataclass(frozen=True)
class Grid:
    """Cartesian product of the axes and the zips, without the excluded points."""

    name: str
    axes: Values
    """Key -> values; these multiply."""
    zipped: Sequence[Values] = ()
    """Each with keys -> values, all of equal length; these advance together."""
    excluded: Sequence[Values] = ()
    """Entries; a point is dropped if it matches every key of one entry."""

    @property
    def size(self) -> int:
        """Number of points, excluded ones included."""
        together = [max(map(len, one.values()), default=1) for one in self.zipped]
        return math.prod([*map(len, self.axes.values()), *together])

    @property
    def held(self) -> Values:
        """All keys of the grid, each with its values."""
        return {**self.axes, **_all_of(self.zipped)}

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield each point as key -> value; later axes vary faster, and the zips fastest."""
        axes = [[{key: value} for value in values] for key, values in self.axes.items()]
        for parts in itertools.product(*axes, *map(_rows, self.zipped)):
            point = {key: value for part in parts for key, value in part.items()}
            if not any(_fits(point, entry) for entry in self.excluded):
                yield point


@dataclass(frozen=True)
class Point:
    """Values that one run sets, and the names of the grids that contain it."""

    values: Mapping[str, Any]
    grids: tuple[str, ...] = ()


def _rows(zipped: Values) -> list[dict[str, Any]]:
    return [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)]


def _all_of(zipped: Sequence[Values]) -> Values:
    return {key: values for one in zipped for key, values in one.items()}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, however they are spelled."""
    return bool(one == other) or str(one) == str(other)


def union(grids: Sequence[Grid]) -> list[Point]:
    """Each distinct point once, in order of first appearance, with the names of all grids that contain it."""
    found: dict[frozenset[tuple[str, str]], Point] = {}
    for grid in grids:
        for values in grid.points():
            spelled = frozenset((key, repr(value)) for key, value in values.items())
            known = found.get(spelled, Point(values))
            names = dict.fromkeys((*known.grids, grid.name))
            found[spelled] = Point(known.values, tuple(names))
    return list(found.values())


def read_grids(config: DictConfig, check: Check) -> list[Grid]:
    """Read the grids of a composed command; empty if it lists none.

    Raises:
        ConfigError: all problems of all grids at once, each naming its grid.
    """
    problems: list[str] = []
    common = _read_axes(_resolved(config, "common", problems) or {}, check, "common", problems)
    written = _resolved(config, "grids", problems) or ([{}] if common else [])
    names = [str(raw.get("name") or f"grid {number}") for number, raw in enumerate(written, 1)]
    problems += [
        f"{name}: name must be text"
        for name, raw in zip(names, written, strict=True)
        if not isinstance(raw.get("name", ""), str)
    ]
    problems += [f"{name}: two grids have this name" for name in names if names.count(name) > 1]
    grids = [_read_grid(name, raw, common, check, problems) for name, raw in zip(names, written, strict=True)]
    if problems:
        raise ConfigError(problems)
    return grids


def _resolved(config: DictConfig, key: str, problems: list[str]) -> Any:
    try:
        return OmegaConf.to_container(config[key], resolve=True)
    except OmegaConfBaseException as error:
        problems.append(f"{key}: {first_line(error)}")
        return None


def _read_grid(name: str, raw: Mapping[str, Any], common: Values, check: Check, problems: list[str]) -> Grid:
    found: list[str] = []
    own = _read_axes({key: value for key, value in raw.items() if key not in RESERVED}, check, "", found)
    zips = _read_zips(raw.get("zip") or {}, check, found)
    zipped = _all_of(zips)
    found += [f"{key} is both in the grid and in its zip" for key in own if key in zipped]
    for key, shared in common.items():
        given = [*own.get(key, ()), *zipped.get(key, ())]
        if given and (key in zipped or not _equal(given, shared)):
            found.append(f"{key}={_listed(given)}, but common has {key}={_listed(shared)}")
    axes = {**own, **{key: values for key, values in common.items() if key not in zipped}}
    excluded = _read_exclude(raw.get("exclude") or [], {**axes, **zipped}, found)
    grid = Grid(name, axes, zips, excluded)
    if excluded and not found and all(common.values()) and not any(True for _ in grid.points()):
        found.append("exclude leaves no point")
    problems += [f"{name}: {problem}" for problem in found]
    return grid


def _read_axes(raw: Mapping[str, Any], check: Check, where: str, problems: list[str]) -> Values:
    """Read key -> list of values; a single value becomes a list of one."""
    axes = _listed_values(raw)
    doubled = two_spellings(raw)
    problems += [f"{where}: {problem}" if where else problem for problem in doubled]
    for key, values in axes.items():
        found = _problems_of(key, values, check)
        problems += [f"{where}: {problem}" if where else problem for problem in found]
    return axes


def _listed_values(raw: Mapping[str, Any]) -> Values:
    return {short_key(str(key)): value if isinstance(value, list) else [value] for key, value in raw.items()}


def two_spellings(keys: Iterable[str]) -> list[str]:
    """A line for each key that is given by its short and by its long name."""
    given = set(keys)
    return [
        f"{short_key(key)} and {key} are one key: give one of them"
        for key in sorted(given)
        if short_key(key) != key and short_key(key) in given
    ]


def _problems_of(key: str, values: Sequence[Any], check: Check) -> list[str]:
    if key.split(".")[0] in NOT_SWEPT:
        return [f"{key} cannot be swept: it belongs to the sweep as a whole"]
    if not values:
        return [f"{key}: the list of values is empty"]
    if any(isinstance(value, Mapping) for value in values):
        return [f"{key}: a mapping is no value; write nested keys with dots, as in optimizer.lr"]
    return check(key, values)


def _read_zips(raw: Any, check: Check, problems: list[str]) -> list[Values]:
    zips = raw if isinstance(raw, list) else [raw]
    if any(
        not isinstance(one, Mapping) or not all(isinstance(values, list) for values in one.values())
        for one in zips
    ):
        problems.append("zip must map keys to lists of values")
        return []
    keys = [short_key(str(key)) for one in zips for key in one]
    problems += [f"zip: {key} is given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return equally_long([_read_axes(one, check, "zip", problems) for one in zips if one], problems)


def zip_lists(lists: Values, raw: Sequence[Any]) -> Grid:
    """The grid of a command's comma lists; keys advance together with `zip=[a,b]` or `zip=[[a,b],[c,d]]`.

    Raises:
        ConfigError: all problems of the zip.
    """
    nested = any(isinstance(one, list) for one in raw)
    together = [one if isinstance(one, list) else [one] for one in raw] if nested else [list(raw)]
    if not all(isinstance(key, str) for one in together for key in one):
        raise ConfigError([f"zip={_listed(raw)}: {_ZIP_FORM}"])
    together = [[short_key(key) for key in one] for one in together if one]
    keys = [key for one in together for key in one]
    problems = [f"zip: {key} is given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    problems += [f"zip: {key} has no comma list: give it as {key}=A,B" for key in keys if key not in lists]
    if not problems:
        zips = equally_long([{key: lists[key] for key in one} for one in together], problems)
    if problems:
        raise ConfigError(problems)
    return Grid("", {key: values for key, values in lists.items() if key not in keys}, zips)


def equally_long(zips: list[Values], problems: list[str]) -> list[Values]:
    """Return the zips; those with lists of several lengths are emptied, with a line in `problems`."""
    for index, zipped in enumerate(zips):
        if len({len(values) for values in zipped.values()}) > 1:
            lengths = ", ".join(f"{key} has {len(values)}" for key, values in zipped.items())
            problems.append(f"zip: the lists must be equally long: {lengths}")
            zips[index] = {key: [] for key in zipped}
    return zips


def _read_exclude(raw: Any, held: Values, problems: list[str]) -> list[Values]:
    if not isinstance(raw, list) or not all(isinstance(entry, Mapping) and entry for entry in raw):
        problems.append("exclude must be a list of mappings of keys to values")
        return []
    entries = [_listed_values(entry) for entry in raw]
    problems += [f"exclude: {problem}" for entry in raw for problem in two_spellings(entry)]
    problems += [
        f"exclude: {key}: the list of values is empty"
        for entry in entries
        for key, values in entry.items()
        if not values
    ]
    for key, value in ((key, one) for entry in entries for key, values in entry.items() for one in values):
        if key not in held:
            problems.append(f"exclude: the grid has no key {key}; it has {', '.join(held)}")
        elif not any(same(value, one) for one in held[key]):
            problems.append(f"exclude: {key}={value} is not in the grid, which has {_listed(held[key])}")
    return entries


def _fits(point: Mapping[str, Any], entry: Values) -> bool:
    return all(any(same(point[key], value) for value in values) for key, values in entry.items())


def _equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def _listed(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
