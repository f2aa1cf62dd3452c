"""The ground floor: every key of the configuration, its checks, and the names and ids derived from it.

No framework is imported here: the command line reads this before anything heavy loads.
"""

from sae_sweep.config.architecture import (
    ARCHITECTURES,
    ArchitectureConfig,
    BatchTopKConfig,
    JumpReLUConfig,
    ReLUConfig,
    TopKConfig,
)
from sae_sweep.config.data import (
    KNOWN_MODELS,
    DatasetConfig,
    EmbeddedDataset,
    FilesDataset,
    HubDataset,
    ModelConfig,
    PackingConfig,
)
from sae_sweep.config.errors import ConfigError, Interrupted, SaeSweepError, first_line
from sae_sweep.config.plain import digest, flatten
from sae_sweep.config.run import Config, config_from_dict, needs_plan
from sae_sweep.config.training import (
    KEPT_RESIDUALS_BYTES,
    ActivationsConfig,
    EvaluationConfig,
    InitConfig,
    LauncherConfig,
    MatchingConfig,
    OptimizerConfig,
    PathsConfig,
    PlanConfig,
    SlurmConfig,
    StudyConfig,
    TrackingConfig,
)

__all__ = [
    "ARCHITECTURES",
    "KEPT_RESIDUALS_BYTES",
    "KNOWN_MODELS",
    "ActivationsConfig",
    "ArchitectureConfig",
    "BatchTopKConfig",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "EmbeddedDataset",
    "EvaluationConfig",
    "FilesDataset",
    "HubDataset",
    "InitConfig",
    "Interrupted",
    "JumpReLUConfig",
    "LauncherConfig",
    "MatchingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PathsConfig",
    "PlanConfig",
    "ReLUConfig",
    "SaeSweepError",
    "SlurmConfig",
    "StudyConfig",
    "TopKConfig",
    "TrackingConfig",
    "config_from_dict",
    "digest",
    "first_line",
    "flatten",
    "needs_plan",
]
