"""Typed schemas that Hydra validates configs against, and the folder of the config groups."""

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
from sae_sweep.config.checks import same_as
from sae_sweep.tasks import TASKS, command_class

DATASET_SCHEMAS = {"embedded": EmbeddedDataset, "hub": HubDataset, "files": FilesDataset}


@dataclass(frozen=True)
class GridKeys:
    """Keys that only the command line has: short names of sparsity keys, and the grids."""

    k: int = same_as(TopKConfig, "k")
    """Active features per token (topk, batchtopk): `architecture.k`."""
    l0_coefficient: float = same_as(JumpReLUConfig, "l0_coefficient")
    """Sparsity weight (jumprelu): `architecture.l0_coefficient`."""
    l1_coefficient: float = same_as(ReLUConfig, "l1_coefficient")
    """Sparsity weight (relu): `architecture.l1_coefficient`."""
    common: dict[str, Any] = field(default_factory=dict)
    """Keys, each with a value or a list of values, that are added to every grid."""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """Grids, each mapping keys to a value or a list of values; the sweep is the union of their products."""


@dataclass(frozen=True)
class Schema(GridKeys, RunConfig, command_class()):  # type: ignore[misc]  # tasks add keys
    """All keys of the command line: those of a run and those of a command."""


def conf_folder() -> Path:
    """Folder of the config groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Put the root schema and the variants of `architecture` and `dataset` into the ConfigStore.

    Also registers resolvers: config files may multiply, as in `${times:0.0018,${study.l0_scale}}`, and the
    `--help` template uses `${group_help:}` and `${task_help:}`.
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
    """A writable schema of a frozen dataclass: OmegaConf makes it read-only, but composing writes to it.

    Fields of type dict accept new keys; Hydra forbids new keys everywhere else.
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
