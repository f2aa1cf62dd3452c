"""The typed schemas that Hydra checks every config against."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sae_sweep.config import ARCHITECTURES, Config, EmbeddedDataset, FilesDataset, HubDataset


@dataclass(frozen=True)
class Schema(Config):
    """What a command may hold: the keys of a run, and what makes many runs of them."""

    common: dict[str, Any] = field(default_factory=dict)
    """Keys with a value or a list of values that every grid has."""

    grids: list[dict[str, Any]] = field(default_factory=list)
    """Each maps keys to a value or a list of values; the sweep is the union of their products."""
    budget: str = "equal"
    """equal: `tokens` for every run. published: what the study's checkpoints imply, 10^9 tokens on
    OpenWebText, or on what is read in its place, and `tokens` elsewhere."""


def conf_folder() -> Path:
    """The config groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Put the root schema and the variants of `architecture` and `dataset` into the ConfigStore.

    Experiments may scale a number: `${times:0.0018,${study.l0_scale}}`.
    """
    OmegaConf.register_new_resolver("times", _times, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=open_schema(Schema))
    for kind, architecture in ARCHITECTURES.items():
        store.store(group="schema/architecture", name=kind, node=open_schema(architecture))
    for name, dataset in DATASET_SCHEMAS.items():
        store.store(group="schema/dataset", name=name, node=open_schema(dataset))


def open_schema(cls: type) -> DictConfig:
    """The schema of a frozen dataclass, writable: OmegaConf locks those, and composing has to write.

    Its plain dicts take new keys, although Hydra forbids them to the rest of the config.
    """
    schema = OmegaConf.structured(cls)
    _unlock(schema)
    return schema


def _unlock(node: Any) -> None:
    if isinstance(node, DictConfig):
        OmegaConf.set_readonly(node, None)
        if OmegaConf.get_type(node) is dict:
            OmegaConf.set_struct(node, False)  # its keys are the user's own
        for key in node:
            _unlock(node._get_node(key))


def _times(one: float, other: float) -> float:
    return float(f"{one * other:.12g}")  # 0.0018 x 6 is 0.0108, not 0.010799999999999999


DATASET_SCHEMAS = {"embedded": EmbeddedDataset, "hub": HubDataset, "files": FilesDataset}
