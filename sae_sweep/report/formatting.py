"""Text for people: numbers with their units, short labels for runs, and aligned columns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sae_sweep.config import RunConfig, escaped
from sae_sweep.config.swept import main_keys

MIXED = "†"
"""Mark of a run that was trained with other numerics for a part of the time, and of what depends on it."""
UNDERTRAINED, INHERITED = "*", "‡"
"""Marks of an SAE that still matches its start, which was drawn, or another SAE."""
_PREFIXES = ((10**24, "Y"), (10**21, "Z"), (10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"))
_BARE = ("dataset", "architecture", "sparsity", "model", "numerics")
"""Keys whose values are clear without the key."""
_FORMATS = {"layer": "L{}", "dictionary": "x{}", "k": "k{}", "seed": "seed {}"}
_GAP = "  "
_MOST_VALUES = 5
"""Values of a key that are named one by one."""
_NARROWEST = 8


def count(number: int) -> str:
    """`100_000_000` -> `100M`."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{_rounded(number / size)}{unit}"
    return str(number)


def flop(number: float) -> str:
    """Floating-point operations: `4.66e19` -> `46.6 EFLOP`."""
    unit, prefix = next(((unit, prefix) for unit, prefix in _PREFIXES if number >= unit), (10**6, "M"))
    return f"{_rounded(number / unit)} {prefix}FLOP"


def size(number: float) -> str:
    """Bytes in a fitting unit: `2**31` -> `2 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{_rounded(number)} {unit}"
        number /= 1024
    return f"{_rounded(number)} TiB"


def _rounded(number: float) -> str:
    """Three significant digits, and all digits before the decimal point."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def span(seconds: float) -> str:
    """Duration in a fitting unit: `3 min`, `2.5 h`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit != "d" and seconds >= size):
            return f"{round(seconds / size, unit != 'min'):g} {unit}"
    return f"{max(0, round(seconds))} s"


def hours(number: float) -> str:
    """Duration in hours, or in a smaller unit below one hour."""
    return f"{number:,.1f} hours" if number >= 1 else span(3600 * number)


def mixed_note(mark: str = MIXED) -> str:
    """What the mark means, in one line."""
    return (
        f"{mark} mixed: part of the run was trained with other numerics (device, dtype, attention, kernels "
        "or LM batch); its last bits, and so its features, may differ from an undisturbed run's."
    )


def start_mark(init_match: float | None, limit: float, fine_tuned: object) -> str:
    """Mark of an SAE that still matches its start: a drawn dictionary or, if it is fine-tuned, an SAE."""
    return (INHERITED if fine_tuned else UNDERTRAINED) if (init_match or 0) > limit else ""


def start_notes(init_matches: Sequence[float | None], starts: Sequence[str], limit: float) -> list[str]:
    """What the marks of some SAEs mean: why nothing is concluded from them."""
    near = [start for match, start in zip(init_matches, starts, strict=True) if (match or 0) > limit]
    notes, above = [], f"init above {limit:.0%}"
    if "" in near:
        notes.append(f"{UNDERTRAINED} undertrained: {above}; the run may match only due to its start.")
    if tuned := dict.fromkeys(filter(None, near)):
        notes.append(
            f"{INHERITED} fine-tuned from {', '.join(map(escaped, tuned))}: {above}; what such "
            "runs share may come from there, and says nothing about their own text or seed."
        )
    return notes


def marked(label: str, mixed: object) -> str:
    """`label`, with the mark if `mixed` is true."""
    return label + MIXED if mixed else label


def short_labels(names: Sequence[str], keys: Sequence[Mapping[str, Any]] | None = None) -> list[str]:
    """One label per run, all different.

    Args:
        names: run names, all different.
        keys: swept keys of each run. Labels are made of the keys that vary, if that makes all of them
            different, else of the parts of the names that not all names share.
    """
    if keys is not None:
        labels = _from_keys(keys)
        if len(set(labels)) == len(names) and all(labels):
            return labels
    labels = _from_names(names)
    return labels if len(set(labels)) == len(names) and all(labels) else list(map(escaped, names))


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, cut in the middle, since both ends of a run's name matter."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def described(configs: Sequence[RunConfig]) -> str:
    """What SAEs have in common, except their datasets: `SAEs: gpt2-pico; layer 6; topk; ...`; empty
    without SAEs."""
    each = [main_keys(config) for config in configs]
    if not each:
        return ""
    parts = []
    for key in dict.fromkeys(key for one in each for key in one if key != "dataset"):
        values = list(dict.fromkeys(str(one[key]) for one in each if key in one))
        if len(values) > _MOST_VALUES:
            parts.append(f"{len(values)} values of {key}")
        elif key in _BARE:
            parts.append(listed(values))
        else:
            parts.append(f"{key}{'s' * (key == 'seed' and len(values) > 1)} {listed(values)}")
    tokens = f"{number_span([one.tokens for one in configs], count)} training tokens"
    return escaped(f"SAEs: {'; '.join([*parts, tokens])}.")


def number_span(numbers: Sequence[int], form: Callable[[int], str] = "{:,}".format) -> str:
    """`20`, or from the smallest to the largest: `20 to 1,000`."""
    return " to ".join(map(form, sorted({min(numbers), max(numbers)})))


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _from_keys(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    known = dict.fromkeys(key for each in keys for key in each)
    varying = [key for key in known if len({str(each.get(key)) for each in keys}) > 1]
    ordered = sorted(varying, key=lambda key: key == "seed")
    return [escaped(" ".join(_part(key, each[key]) for key in ordered if key in each)) for each in keys]


def _part(key: str, value: Any) -> str:
    last = key.split(".")[-1]
    if value is None:
        return f"no {last}"
    if last in _BARE:
        return str(value)
    return _FORMATS.get(last, f"{last} {{}}").format(value)


def _from_names(names: Sequence[str]) -> list[str]:
    parts = [name.split("_") for name in names]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    return [escaped("_".join(part for part in each if part not in shared)) for each in parts]


class TextTable:
    """A table whose columns are as wide as their longest cell."""

    def __init__(self, heads: Sequence[str], left: Collection[int] = ()) -> None:
        """`left`: columns that are aligned to the left; the others, numbers, to the right."""
        self._heads = list(heads)
        self._left = set(left)
        self._rows: list[list[str]] = []

    def add(self, cells: Sequence[str]) -> None:
        self._rows.append([escaped(cell) for cell in cells])

    def rename(self, names: Sequence[str]) -> None:
        """Replace the cells of the first column."""
        for row, name in zip(self._rows, names, strict=True):
            row[0] = escaped(name)

    @property
    def width(self) -> int:
        return self._total(range(len(self._heads)))

    def least_width(self, first: int, drop: Sequence[int] = ()) -> int:
        """Width without the columns in `drop` and with the first one cut to `first` characters."""
        kept = [column for column in range(len(self._heads)) if column not in drop]
        return self._total(kept) - max(0, self._widths()[0] - first)

    def lines(self, width: int, drop: Sequence[int] = ()) -> list[str]:
        """Head, rule and rows, none longer than `width`.

        If they are too long, the columns in `drop` are left out one by one, then the first column is cut,
        then the ends of lines.
        """
        kept = list(range(len(self._heads)))
        for column in drop:
            if self._total(kept) > width:
                kept.remove(column)
        widths = self._widths()
        widths[0] -= max(0, min(self._total(kept) - width, widths[0] - _NARROWEST))
        lines = [self._line(row, kept, widths) for row in (self._heads, *self._rows)]
        rule = "-" * min(width, sum(widths[column] for column in kept) + len(_GAP) * (len(kept) - 1))
        return [line[:width] for line in (lines[0], rule, *lines[1:])]

    def _total(self, kept: Sequence[int]) -> int:
        widths = self._widths()
        return sum(widths[column] for column in kept) + len(_GAP) * (len(kept) - 1)

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self._heads, *self._rows, strict=True)]

    def _line(self, cells: Sequence[str], kept: Sequence[int], widths: Sequence[int]) -> str:
        return _GAP.join(self._cell(cells[column], column, widths[column]) for column in kept).rstrip()

    def _cell(self, text: str, column: int, width: int) -> str:
        fitted = shorten(text, width)
        return fitted.ljust(width) if column in self._left else fitted.rjust(width)
