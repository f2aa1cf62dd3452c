"""The config groups of a command: those of the package and those of the folders that the command adds."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig

from sae_sweep.cli.schema import conf_folder
from sae_sweep.config import ConfigError

PRIMARY_CONFIG = "config"
_NOT_SHOWN = ("hydra", "schema")


class Groups:
    """Looks config groups and their choices up on a command's search path."""

    def __init__(
        self, loader: ConfigLoaderImpl, config_name: str = PRIMARY_CONFIG, overrides: Sequence[str] = ()
    ) -> None:
        """Set where to look.

        Args:
            loader: knows the package's folder and that of `--config-dir`.
            config_name: the primary config, which may set `hydra.searchpath`.
            overrides: those of Hydra's keys, which may set it, too.
        """
        self._loader = loader
        self._config_name = config_name
        self._overrides = list(overrides)
        self._known: dict[tuple[str, ObjectType], tuple[str, ...]] = {}

    @functools.cached_property
    def _repository(self) -> Any:
        """Folders of the search path; `loader.get_group_options` would copy them for each group."""
        _, repository = self._loader._parse_overrides_and_create_caching_repo(
            self._config_name, self._overrides
        )
        return repository

    def choices(self, group: str) -> tuple[str, ...]:
        """The choices of a config group; empty if there is no such group."""
        return self._options(group, ObjectType.CONFIG) if group else ()

    def has(self, group: str, choice: str) -> bool:
        """Whether a choice exists; `experiment=mine/first` is one of a folder in the group."""
        folder, _, name = choice.rpartition("/")
        return name in self.choices(f"{group}/{folder}" if folder else group)

    def _options(self, group: str, kind: ObjectType) -> tuple[str, ...]:
        if (group, kind) not in self._known:
            found = self._repository.get_group_options(group, kind)
            self._known[group, kind] = tuple(name for name in found if not name.startswith("."))
        return self._known[group, kind]

    def listed(self) -> str:
        """All groups with their choices, one per line, for `--help`."""
        names = (name for name in self._options("", ObjectType.GROUP) if name not in _NOT_SHOWN)
        return "\n".join(f"{name}: {', '.join(self.choices(name))}" for name in names if self.choices(name))


def groups_of(master: DictConfig, loader: ConfigLoaderImpl) -> Groups:
    """The groups of a command that Hydra has composed."""
    return Groups(loader, master.hydra.job.config_name, list(master.hydra.overrides.hydra))


def config_loader(config_path: str | None = None, config_dir: str | None = None) -> ConfigLoaderImpl:
    """A loader for the package's config groups, or those of another folder, and for an additional folder.

    Raises:
        ConfigError: if there is no such folder.
    """
    path = create_config_search_path(config_path or str(conf_folder()))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError([f"--config-dir {config_dir}: no such folder"])
        schema = SearchPathQuery(provider="schema")
        path.prepend("command-line", f"file://{Path(config_dir).absolute()}", anchor=schema)
    return ConfigLoaderImpl(config_search_path=path)


def missing_folders(paths: Sequence[str]) -> list[str]:
    """Entries of a `hydra.searchpath` (`FOLDER`, `file://FOLDER`, `pkg://MODULE`) that do not exist.

    Hydra only warns of them.
    """
    return [path for path in paths if not _source(path).available()]


def _source(path: str) -> ConfigSource:
    scheme = path.partition("://")[0] if "://" in path else "file"
    return SourcesRegistry.instance().resolve(scheme)("command-line", path)
