"""Names of runs: the main keys, then where a run differs from the defaults."""

import math
from typing import Any

from sae_sweep.config import RunConfig
from sae_sweep.config.names import LONGEST_NAME, made_plain
from sae_sweep.config.plain import digest, flatten

_IN_BASE_NAME = {
    *("architecture.kind", "architecture.k", "architecture.l0_coefficient", "architecture.l1_coefficient"),
    *("dictionary", "layer", "seed", "model.path", "dataset.name", "dataset.path"),
}


def run_name(config: RunConfig, reference: RunConfig) -> str:
    """Run name: `gpt2-small_L8_owt_topk_x16_k16_s49`, then each other key that affects weights and differs.

    Args:
        config: the run.
        reference: the defaults of the same model, dataset, architecture and numerics.
    """
    ours, usual = flatten(config.weight_keys()), flatten(reference.weight_keys())
    extras = [
        f"{key.split('.')[-1]}-{_short(value)}"
        for key, value in ours.items()
        if key not in _IN_BASE_NAME and usual.get(key) != value
    ]
    if config.numerics != "modern":
        extras.insert(0, config.numerics)
    base = made_plain(config.base_name())
    name = made_plain("_".join([base, *extras]))
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[: LONGEST_NAME - 13].decode(errors="ignore").rstrip("_")
    return f"{kept}_{digest(extras if kept.startswith(base) else [base, *extras])}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 1000:
        exponent = int(math.log10(value))
        mantissa = value / 10**exponent
        compact = f"{mantissa:g}e{exponent}"
        return compact if float(compact) == value and len(compact) < len(str(value)) else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
