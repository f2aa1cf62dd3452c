"""Names of runs: the main keys, then where a run differs from what its experiment fixes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sae_sweep.config import SPARSITY_KEYS, RunConfig
from sae_sweep.config.names import LONGEST_NAME, made_plain, unquoted
from sae_sweep.config.plain import compact, digest, flatten

_IN_BASE_NAME = {
    *(f"architecture.{key}" for key in ("kind", *SPARSITY_KEYS)),
    *("dictionary", "layer", "seed", "model.path", "dataset.name", "dataset.path"),
}
_MIXTURE = ("dataset.weights.", "dataset.parts.", "dataset.source.")
"""Keys of datasets made of others, which a label or another key names."""
_DIGEST_BYTES = 13
"""Length of a digest or an id with the `_` before it."""


def run_name(config: RunConfig, reference: RunConfig) -> str:
    """Run name: `gpt2-small_L8_owt_topk_x16_k16_s49`, then each other key that affects weights and differs.

    Args:
        config: the run.
        reference: what its experiment gives without it, else the defaults, for the same model, dataset,
            architecture and preset of `numerics`.
    """
    ours, usual = flatten(config.as_dict()), flatten(reference.as_dict())
    keys = list(flatten(config.weight_keys()))
    shared = Counter(map(_last, keys))
    extras = [
        config.numerics if key == "numerics" else f"{_last(key, shared)}-{_short(ours[key])}"
        for key in sorted(keys, key="numerics".__ne__)
        if key not in _IN_BASE_NAME and not key.startswith(_MIXTURE) and usual.get(key) != ours[key]
    ]
    return _cut(made_plain(config.base_name()), [unquoted(extra) for extra in extras])


def _cut(base: str, extras: list[str]) -> str:
    """Join the parts of a name; one that is too long ends in a digest of the whole instead of some parts."""
    name = whole = "_".join([base, *extras])
    if len(name.encode()) <= LONGEST_NAME:
        return name
    while extras and len(name.encode()) > LONGEST_NAME - _DIGEST_BYTES:
        extras = extras[:-1]
        name = "_".join([base, *extras])
    return _marked(name, digest(whole))


def _marked(name: str, mark: str) -> str:
    kept = name.encode()[: LONGEST_NAME - _DIGEST_BYTES].decode(errors="ignore").rstrip("_ ")
    return f"{kept}_{mark}"


def distinct_names(names: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    """Names by run id: those on disk stay; a new run's has its id at the end if another run has the name.

    Names that differ only in upper and lower case are equal to some file systems.

    Args:
        names: of the runs of a command, by id.
        kept: of the runs on disk, by id.
    """
    found = {run_id: kept.get(run_id, name) for run_id, name in names.items()}
    times = Counter(name.casefold() for name in found.values())
    return {
        run_id: _marked(name, run_id) if times[name.casefold()] > 1 and run_id not in kept else name
        for run_id, name in found.items()
    }


def _last(key: str, shared: Counter[str] | None = None) -> str:
    """The last part of a dotted key; the whole key if two keys of a run have that part."""
    last = key.rpartition(".")[2]
    return key if shared and shared[last] > 1 else last


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return compact(value) if isinstance(value, int | float) else str(value)
