"""Short hashes and flat keys of nested values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compact(value: float) -> str:
    """The shortest text of a number that no other number has: `0.003`, `1e-08`, `5e5`."""
    if isinstance(value, int):
        return _compact_int(value) if value >= 1000 else str(value)
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _compact_int(value: int) -> str:
    exponent = len(str(value)) - 1
    text = f"{value / 10**exponent:g}e{exponent}"
    return text if float(text) == value and len(text) < len(str(value)) else str(value)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
