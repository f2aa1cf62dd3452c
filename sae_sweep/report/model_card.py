"""The model card of a repository of SAEs on the Hugging Face Hub."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sae_sweep.config import SPARSITY_KEYS
from sae_sweep.report.formatting import INHERITED, UNDERTRAINED, start_mark
from sae_sweep.report.markdown import code, inline

MARK = "<!-- written by sae_sweep: task=publish replaces this file -->"
"""In every card; one without it was written by somebody else."""
_UNKNOWN = "-"
_INPUTS = {
    "layer_norm": "Each token is normalised over the residual's dimensions before the encoder, and the "
    "reconstruction is scaled back (`normalize_activations: layer_norm`), so raw residuals go in.",
    "constant_norm_rescale": "Each token is scaled to norm sqrt(d_in) before the encoder, and the "
    "reconstruction is scaled back (`normalize_activations: constant_norm_rescale`), so raw residuals go in.",
    "none": "Raw residuals go in and come out (`normalize_activations: none`).",
    "centred": "Each token's mean over the residual's dimensions is subtracted before the encoder, and added "
    "to the reconstruction. sae_sweep does so; for SAELens, load the language model with "
    "`center_writing_weights=True`, as `model_from_pretrained_kwargs` says.",
}
"""What a card says of the inputs, by normalisation."""


class Published(NamedTuple):
    """An SAE in a repository, as its files there describe it; anybody may have written them."""

    folder: str
    cfg: Any
    """Content of its `cfg.json`."""
    metrics: Any
    """Content of its `metrics.json`."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        return _object(self.cfg, "metadata")

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The architecture and its settings; empty for an SAE that this package did not write."""
        return _object(_object(self.metadata, "sae_sweep"), "architecture")

    @property
    def normalisation(self) -> str:
        """How its inputs are normalised, in this package's words."""
        said = _object(self.metadata, "sae_sweep").get("normalisation", "layer_norm")
        return said if isinstance(said, str) else _UNKNOWN

    @property
    def fine_tuned(self) -> bool:
        """Whether it was fine-tuned from another SAE, beside which it is then evaluated."""
        return self.measured("new_features") is not None

    def measured(self, key: str) -> float | None:
        """A number of the evaluation; None if it is unknown."""
        value = self.metrics.get(key) if isinstance(self.metrics, dict) else None
        return value if isinstance(value, int | float) else None


def _object(value: Any, key: str) -> Mapping[str, Any]:
    """The JSON object under a key; an empty one in place of anything else."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def model_card(repo: str, saes: Sequence[Published], undertrained: float) -> str:
    """Markdown of the card, with the metadata that the hub reads.

    Args:
        repo: `owner/name`.
        saes: all SAEs of this package in the repository, at least one.
        undertrained: share of features that match their start, above which an SAE is marked.
    """
    marks = {one.folder: start_mark(one.measured("init_match"), undertrained, one.fine_tuned) for one in saes}
    folder: _Columns = {
        "folder": lambda one: code(one.folder or "./") + inline(f" {marks[one.folder]}".rstrip())
    }
    models = _distinct(saes, "model_name")
    parts = [
        _front_matter(saes),
        MARK,
        f"# Sparse autoencoders of {', '.join(map(inline, models)) or 'a language model'}",
        f"{len(saes)} sparse autoencoder{'s' if len(saes) > 1 else ''} (SAEs) of the residual stream, "
        "trained with sae_sweep. Each has a folder in SAELens's layout: `cfg.json` and "
        "`sae_weights.safetensors`.",
        _loading(repo, saes[0]),
        "## The SAEs",
        _table(saes, folder | _DESCRIBED),
        "## Evaluation",
        "On held-out text. Explained variance is that of the inputs as normalised. CE recovered: of the "
        "cross-entropy that is lost when the residual stream is zeroed, the share that the reconstruction "
        "wins back. Start: the share of features that still match what the SAE started from.",
        _table(saes, folder | _EVALUATED),
        *(_LIMITS[mark].format(undertrained) for mark in (UNDERTRAINED, INHERITED) if mark in marks.values()),
        "## How they were trained",
        "`metadata` in each `cfg.json` has the hook, the text, the number of tokens, the trainer's preset "
        "and the versions of all libraries.",
        *_inputs(saes),
    ]
    return "\n\n".join(parts) + "\n"


def _inputs(saes: Sequence[Published]) -> list[str]:
    """What goes into the SAEs; with the names of the normalisations if there are several."""
    found = [how for how in dict.fromkeys(one.normalisation for one in saes) if how in _INPUTS]
    return [_INPUTS[how] if len(found) == 1 else f"Inputs `{how}`: {_INPUTS[how]}" for how in found]


def _front_matter(saes: Sequence[Published]) -> str:
    """YAML that the hub reads; JSON is YAML, and quotes what needs quotes."""
    values: dict[str, Any] = {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "sae", "saelens", "sae_sweep", "mechanistic-interpretability"],
    }
    if models := _distinct(saes, "base_model"):
        values["base_model"] = models
    if datasets := _distinct(saes, "hub_dataset"):
        values["datasets"] = datasets
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _loading(repo: str, first: Published) -> str:
    return f"""## Use

```python
from sae_lens import SAE

sae = SAE.from_pretrained({json.dumps(repo)}, {json.dumps(first.folder)})
```

or, with every measure of sae_sweep:

```python
import sae_sweep as ss

sae = ss.load_sae({json.dumps(f"hf:{repo}/{first.folder}".rstrip("/"))})
```"""


_LIMITS = {
    UNDERTRAINED: r"SAEs marked with \* are **undertrained**: more than {:.0%} of their features still match "
    "the initial dictionary. No conclusion about features should be drawn from them.",
    INHERITED: "SAEs marked with ‡ are **fine-tuned**: more than {:.0%} of their features still match the "
    "SAE that they started from. What two of them share may come from there.",
}


def _architecture(one: Published) -> str:
    own = {key: value for key, value in one.architecture.items() if key in SPARSITY_KEYS}
    shown = ", ".join(f"{key}={value}" for key, value in own.items())
    kind = one.architecture.get("kind", _UNKNOWN)
    return inline(f"{kind} ({shown})" if shown else kind)


def _share(key: str) -> Callable[[Published], str]:
    return lambda one: _number(one.measured(key), ".1%")


def _said(key: str) -> Callable[[Published], str]:
    return lambda one: inline(one.metadata.get(key) or _UNKNOWN)


def _number(value: Any, form: str) -> str:
    fits = type(value) is int or (type(value) is float and not form.endswith("d"))
    return format(value, form) if fits else _UNKNOWN


_Columns = dict[str, Callable[[Published], str]]
_DESCRIBED: _Columns = {
    "model": _said("model_name"),
    "hook": _said("hook_name"),
    "architecture": _architecture,
    "inputs": lambda one: inline(one.normalisation),
    "d_sae": lambda one: _number(one.cfg.get("d_sae"), ",d"),
    "text": _said("dataset_path"),
    "tokens": lambda one: _number(one.metadata.get("training_tokens"), ",d"),
}
_EVALUATED: _Columns = {
    "L0": lambda one: _number(one.measured("l0"), ".1f"),
    "explained variance": _share("explained_variance"),
    "CE recovered": _share("ce_recovered_zero"),
    "alive": lambda one: _number(one.measured("alive"), ",.0f"),
    "start": _share("init_match"),
}


def _table(saes: Sequence[Published], columns: _Columns) -> str:
    rows = [[make(one) for make in columns.values()] for one in saes]
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _distinct(saes: Sequence[Published], key: str) -> list[str]:
    return list(dict.fromkeys(str(one.metadata[key]) for one in saes if one.metadata.get(key)))
