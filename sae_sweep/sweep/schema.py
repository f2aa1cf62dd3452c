"""The typed schemas that Hydra checks every config against."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sae_sweep.config import ARCHITECTURES, Config, EmbeddedDataset, FilesDataset, HubDataset


@dataclass(frozen=True)
class Schema(Config):
    """What a command may hold: the keys of a run, and the grids of an experiment."""

    grids: list[dict[str, Any]] = field(default_factory=list)
    """Each maps keys to a value or a list of values; the sweep is the union of their products."""


def register_schemas() -> None:
    """Put the root schema and the variants of `architecture` and `dataset` into the ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="schema", node=open_schema(Schema))
    for kind, architecture in ARCHITECTURES.items():
        store.store(group="schema/architecture", name=kind, node=open_schema(architecture))
    for name, dataset in DATASET_SCHEMAS.items():
        store.store(group="schema/dataset", name=name, node=open_schema(dataset))


def open_schema(cls: type) -> DictConfig:
    """The schema of a frozen dataclass, writable: OmegaConf locks those, and composing has to write."""
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


DATASET_SCHEMAS = {"embedded": EmbeddedDataset, "hub": HubDataset, "files": FilesDataset}
