"""Short names for runs that stand side by side: only what tells them apart."""

from collections.abc import Mapping, Sequence
from typing import Any

_BARE = ("dataset", "architecture", "sparsity", "model", "numerics")
"""Keys whose values speak for themselves."""
_FORMATS = {"layer": "L{}", "dictionary": "x{}", "k": "k{}", "seed": "seed {}"}


def short_labels(names: Sequence[str], keys: Sequence[Mapping[str, Any]] | None = None) -> list[str]:
    """One label a run, all different.

    Args:
        names: run names, all different.
        keys: swept keys of each run; the labels are made of those that vary, where that tells all apart.
            Otherwise they are the names without the parts that all of them share.
    """
    if keys is not None:
        labels = _from_keys(keys)
        if len(set(labels)) == len(names) and all(labels):
            return labels
    labels = _from_names(names)
    return labels if len(set(labels)) == len(names) and all(labels) else list(names)


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, cut in the middle: both ends of a run's name tell something."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _from_keys(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    known = dict.fromkeys(key for each in keys for key in each)
    varying = [key for key in known if len({str(each.get(key)) for each in keys}) > 1]
    ordered = sorted(varying, key=lambda key: key == "seed")
    return [" ".join(_part(key, each[key]) for key in ordered if key in each) for each in keys]


def _part(key: str, value: Any) -> str:
    last = key.split(".")[-1]
    if last in _BARE:
        return str(value)
    return _FORMATS.get(last, f"{last} {{}}").format(value)


def _from_names(names: Sequence[str]) -> list[str]:
    parts = [name.split("_") for name in names]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    return ["_".join(part for part in each if part not in shared) for each in parts]
