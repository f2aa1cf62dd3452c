"""Config of Weights & Biases, and its rules for names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sae_sweep.config.checks import INT64, Limit, count, number, number_problems, one_of
from sae_sweep.config.folders import known_home
from sae_sweep.config.names import escaped
from sae_sweep.config.plain import digest

MODES = ("online", "offline", "disabled")
_NAME_LENGTH = 128
"""Characters of projects, entities, groups and artifacts."""
TAG_LENGTH = 64
_NOT_IN_URLS = "/\\#?%:"
_NOT_IN_ARTIFACTS = re.compile(r"[^a-zA-Z0-9_.-]")
_MOST_HISTOGRAMS = Limit(1000, "at most 1000 (each is one more pass through the SAE)")


@dataclass(frozen=True)
class TrackingConfig:
    """Settings for Weights & Biases; `history.jsonl` is always written."""

    backend: str = "wandb"
    """wandb or none."""
    mode: str | None = None
    """online, offline or disabled; null: WANDB_MODE, else what `wandb offline` or `wandb disabled` chose,
    else online if W&B finds a key."""
    project: str | None = None
    """null: WANDB_PROJECT, else what `wandb init` chose, else sae_sweep."""
    entity: str | None = None
    """User or team; null: WANDB_ENTITY, else W&B's default."""
    group: str | None = None
    """null: WANDB_RUN_GROUP, else the sweep's name."""
    tags: list[str] | None = None
    """Tags beside the run's own (dataset, architecture, layer, experiment); null: WANDB_TAGS."""
    folder: str | None = None
    """Folder of W&B's files; null: WANDB_DIR, else the sweep's folder."""
    artifacts: bool = True
    """true: upload each trained SAE as an artifact."""
    histograms: int = number(4, least=0, most=_MOST_HISTOGRAMS)
    """Times during training at which histograms of densities and activations are logged, evenly spread."""
    log_every: int = count(50, most=INT64)
    """Steps between two logged points."""

    def problems(self) -> list[str]:
        found = list(number_problems(self, "tracking.").values())
        one_of(found, "tracking.backend", self.backend, ("wandb", "none"))
        if self.mode is not None:
            one_of(found, "tracking.mode", self.mode, MODES)
        for key in ("project", "entity", "group"):
            found += wandb_name_problems(f"tracking.{key}", getattr(self, key), in_urls=key != "group")
        known_home(found, "tracking.folder", self.folder)
        return found + wandb_tag_problems("tracking.tags", self.tags or ())


def wandb_name_problems(key: str, name: str | None, *, in_urls: bool = True) -> list[str]:
    """A line if W&B would refuse a name; None is no name.

    Args:
        key: what to name in the line.
        name: of a project, entity or group.
        in_urls: whether W&B makes addresses of it, as of those of projects and entities.
    """
    if name is None:
        return []
    forbidden = _NOT_IN_URLS if in_urls else ""
    refused = sorted({c for c in name if c in forbidden or not c.isprintable()})
    if not name.strip():
        wrong = "is empty"
    elif name != name.strip():
        wrong = "has space at an end"
    elif len(name) > _NAME_LENGTH:
        wrong = f"is longer than {_NAME_LENGTH} characters"
    elif refused:
        wrong = f"has {' '.join(map(escaped, refused))}"
    else:
        return []
    shown = escaped(name if len(name) <= _NAME_LENGTH else f"{name[:57]}...")
    without = f", without {forbidden}" if forbidden else ""
    return [f"{key}={shown} {wrong}: W&B takes 1 to {_NAME_LENGTH} characters{without}"]


def wandb_tag_problems(key: str, tags: Sequence[str]) -> list[str]:
    """A line if W&B would refuse one of the tags."""
    wrong = [tag for tag in tags if not 1 <= len(tag.strip()) <= TAG_LENGTH]
    named = ", ".join(escaped(tag[:TAG_LENGTH]) or "an empty one" for tag in wrong)
    return [f"{key}: {named}: W&B takes tags of 1 to {TAG_LENGTH} characters"] if wrong else []


def artifact_name(name: str) -> str:
    """The nearest name that W&B takes for an artifact; different names stay different."""
    plain = _NOT_IN_ARTIFACTS.sub("-", name)
    if plain == name and len(name) <= _NAME_LENGTH:
        return name
    return f"{plain[: _NAME_LENGTH - 13]}-{digest(name)}"
