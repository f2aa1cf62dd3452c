"""Makes `sae_sweep/saes/releases.json` from SAELens's own list of SAEs on the Hugging Face hub.

    python tools/saelens_releases.py pretrained_saes.yaml VERSION

The list is in the wheel of sae-lens (MIT license): `pip download --no-deps sae-lens`, then
`unzip -p sae_lens-*.whl sae_lens/pretrained_saes.yaml`. Kept are the SAEs of the residual stream before or
after a block whose files are in SAELens's own layout, with what the list changes in their config.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parents[1] / "sae_sweep" / "saes" / "releases.json"
RESIDUAL = re.compile(r"blocks\.\d+\.hook_resid_(pre|post)")
CHANGES = ("normalize_activations", "model_from_pretrained_kwargs")
"""Keys of a config that the list may change and that decide what an SAE computes."""


def compact(listed: dict[str, Any]) -> dict[str, Any]:
    """The releases that can be read, each with its repository, changes, and folder and scale per SAE."""
    releases = {}
    for name, release in sorted(listed.items()):
        saes = [one for one in release["saes"] if RESIDUAL.match(one["id"])]
        if release.get("conversion_func") or not saes:
            continue
        changes = release.get("config_overrides") or {}
        releases[name] = {
            "repo": release["repo_id"],
            "changes": {key: changes[key] for key in CHANGES if key in changes},
            "folders": {one["id"]: one["path"] for one in saes},
            "scales": {one["id"]: one["norm_scaling_factor"] for one in saes if "norm_scaling_factor" in one},
        }
    return releases


if __name__ == "__main__":
    source = f"pretrained_saes.yaml of sae-lens {sys.argv[2]} (MIT license), by tools/saelens_releases.py"
    listed = yaml.load(Path(sys.argv[1]).read_text(encoding="utf-8"), yaml.CSafeLoader)
    TABLE.write_text(json.dumps({"source": source, "releases": compact(listed)}, indent=1) + "\n", "utf-8")
