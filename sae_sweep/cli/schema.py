"""The typed schemas that Hydra checks every config against, and the folder of the config groups."""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sae_sweep.config import (
    ARCHITECTURES,
    EmbeddedDataset,
    FilesDataset,
    HubDataset,
    JumpReLUConfig,
    ReLUConfig,
    RunConfig,
    TopKConfig,
)
from sae_sweep.tasks import TASKS, command_class

DATASET_SCHEMAS = {"embedded": EmbeddedDataset, "hub": HubDataset, "files": FilesDataset}


@dataclass(frozen=True)
class GridKeys:
    """Keys that only the command line has: names of sparsity keys, and what makes many runs of one."""

    k: int = TopKConfig.k
    """Active features per token (topk, batchtopk): `architecture.k`."""
    l0_coefficient: float = JumpReLUConfig.l0_coefficient
    """Sparsity weight (jumprelu): `architecture.l0_coefficient`."""
    l1_coefficient: float = ReLUConfig.l1_coefficient
    """Sparsity weight (relu): `architecture.l1_coefficient`."""
    common: dict[str, Any] = field(default_factory=dict)
    """Keys with a value or a list of values that every grid has."""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """Each maps keys to a value or a list of values; the sweep is the union of their products."""


Schema = dataclasses.make_dataclass("Schema", [], bases=(GridKeys, RunConfig, command_class()), frozen=True)
"""Every key of a run and of a command, as the command line has them."""


def conf_folder() -> Path:
    """The config groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Put the root schema and the variants of `architecture` and `dataset` into the ConfigStore.

    Config files may use resolvers: `${times:0.0018,${study.l0_scale}}` multiplies; `--help` is made with
    `${group_help:}` and `${task_help:}`.
    """
    OmegaConf.register_new_resolver("times", _times, replace=True)
    OmegaConf.register_new_resolver("group_help", _group_help, replace=True)
    OmegaConf.register_new_resolver("task_help", _task_help, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=open_schema(Schema))
    for kind, architecture in ARCHITECTURES.items():
        store.store(group="schema/architecture", name=kind, node=open_schema(architecture))
    for name, dataset in DATASET_SCHEMAS.items():
        store.store(group="schema/dataset", name=name, node=open_schema(dataset))


@functools.cache
def choices(group: str) -> tuple[str, ...]:
    """The choices of a config group; empty if there is no such group."""
    return tuple(sorted(path.stem for path in (conf_folder() / group).glob("*.yaml")))


def _group_help() -> str:
    groups = sorted(path.name for path in conf_folder().iterdir() if path.is_dir())
    return "\n".join(f"{group}: {', '.join(choices(group))}" for group in groups)


def _task_help() -> str:
    return "\n".join(f"task={name:<8} {task.summary}" for name, task in TASKS.items())


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
