"""Numbers as a person reads them, with their units."""

_PREFIXES = ((10**24, "Y"), (10**21, "Z"), (10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"))


def count(number: int) -> str:
    """`100_000_000` -> `100M`."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{_three(number / size)}{unit}"
    return str(number)


def flop(number: float) -> str:
    """Floating-point operations: `4.66e19` -> `46.6 EFLOP`."""
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if number >= size), (10**6, "M"))
    return f"{_three(number / size)} {prefix}FLOP"


def gib(number: int) -> str:
    """Bytes: `2**31` -> `2 GiB`."""
    return f"{_three(number / 2**30)} GiB"


def _three(number: float) -> str:
    """Three significant digits, and all before the point."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def span(seconds: float) -> str:
    """A length of time in its most fitting unit: `3 min`, `2.5 h`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit != "d" and seconds >= size):
            return f"{round(seconds / size, unit != 'min'):g} {unit}"
    return f"{max(0, round(seconds))} s"


def hours(number: float) -> str:
    """Hours, or minutes where it is less than one."""
    return f"{number:,.1f} hours" if number >= 1 else span(3600 * number)
