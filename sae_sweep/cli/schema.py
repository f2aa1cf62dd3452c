"""Typed schemas that Hydra validates configs against, and the folder of the config groups."""

import functools
import typing
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import AnyNode, DictConfig, IntegerNode, ListConfig, OmegaConf, StringNode

from sae_sweep.config import (
    ARCHITECTURES,
    SPARSITY_KEYS,
    DomainDataset,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    MixDataset,
    RunConfig,
    SyntheticDataset,
)
from sae_sweep.config.checks import same_as
from sae_sweep.tasks import TASKS, command_class

DATASET_SCHEMAS = {
    "embedded": EmbeddedDataset,
    "hub": HubDataset,
    "files": FilesDataset,
    "faithful": FaithfulDataset,
    "synthetic": SyntheticDataset,
    "mix": MixDataset,
    "domain": DomainDataset,
}


def _short(key: str) -> tuple[str, Any, Any]:
    """Declare the short name of a sparsity key, `k` for `architecture.k`."""
    cls = next(cls for cls in ARCHITECTURES.values() if key in cls.uses)
    return key, typing.get_type_hints(cls)[key], same_as(cls, key)


ShortKeys: Any = make_dataclass("ShortKeys", map(_short, SPARSITY_KEYS), frozen=True)
"""`SPARSITY_KEYS` as keys of the command line."""


@dataclass(frozen=True)
class GridKeys(ShortKeys):
    """Keys that only the command line has: short names of sparsity keys, and the grids."""

    common: dict[str, Any] = field(default_factory=dict)
    """Keys, each with a value or a list of values, that are added to every grid."""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """Grids, each mapping keys to a value or a list of values; the sweep is the union of their products."""
    zip: list[Any] = field(default_factory=list)
    """Keys whose comma lists advance together: `zip=[dataset.path,dataset.name]`, or `zip=[[a,b],[c,d]]`."""


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
    `--help` template uses `${task_help:}`.
    """
    OmegaConf.register_new_resolver("times", _times, replace=True)
    OmegaConf.register_new_resolver("task_help", _task_help, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=open_schema(Schema))
    for kind, architecture in ARCHITECTURES.items():
        store.store(group="schema/architecture", name=kind, node=open_schema(architecture))
    for name, dataset in DATASET_SCHEMAS.items():
        store.store(group="schema/dataset", name=name, node=open_schema(dataset))


type_hints = functools.cache(typing.get_type_hints)


def type_of(cls: type, key: str) -> Any:
    """Type of a dotted key of a config class, `str | None` for example."""
    head, _, rest = key.partition(".")
    hint = type_hints(cls)[head]
    if typing.get_origin(hint) is dict:
        return typing.get_args(hint)[1] if rest else hint
    return type_of(hint, rest) if rest else hint


def holds(hint: Any, kind: type) -> bool:
    """Whether a type is `kind` or `kind | None`."""
    return hint in (kind, kind | None)


def of_text(hint: Any) -> bool:
    """Whether a type is text or a list of texts, or either of them or null."""
    inside = () if typing.get_origin(hint) is dict else typing.get_args(hint)
    return hint is str or any(map(of_text, inside))


def _task_help() -> str:
    return "\n".join(f"task={name:<9} {task.summary}" for name, task in TASKS.items())


def open_schema(cls: type) -> DictConfig:
    """A writable schema of a frozen dataclass: OmegaConf makes it read-only, but composing writes to it.

    Fields of type dict accept new keys; Hydra forbids new keys everywhere else. Text and whole numbers keep
    the value of a file as it is until `build` checks it: OmegaConf would make the number of `2026_11_26` a
    text, and refuse `1e8`.
    """
    schema = OmegaConf.structured(cls)
    _unlock(schema)
    return schema


def _unlock(node: Any) -> None:
    if isinstance(node, DictConfig | ListConfig) and node._metadata.element_type is str:
        node._metadata.element_type = Any
    if isinstance(node, DictConfig):
        OmegaConf.set_readonly(node, None)
        if OmegaConf.get_type(node) is dict:
            OmegaConf.set_struct(node, False)  # its keys are the user's own
        for key in node:
            child = node._get_node(key)
            if isinstance(child, IntegerNode | StringNode):
                node.__dict__["_content"][key] = AnyNode(child._value(), key, node)
            _unlock(child)


def _times(one: float, other: float) -> float:
    if isinstance(one, int) and isinstance(other, int):
        return one * other
    return float(f"{one * other:.12g}")  # 0.0018 x 6 is 0.0108, not 0.010799999999999999
