"""Every config key, its checks, and the names and ids derived from the config.

No framework is imported here, since the command line reads this before anything heavy loads.
"""

from sae_sweep.config.architecture import (
    ARCHITECTURES,
    SPARSITY_KEYS,
    ArchitectureConfig,
    BatchTopKConfig,
    JumpReLUConfig,
    ReLUConfig,
    TopKConfig,
    short_key,
)
from sae_sweep.config.checks import is_count
from sae_sweep.config.command import (
    CommandConfig,
    LauncherConfig,
    MatchingConfig,
    PathsConfig,
    PlanConfig,
    SlurmConfig,
)
from sae_sweep.config.data import (
    SYNTHETIC,
    SYNTHETIC_WIDTH,
    DatasetConfig,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    ModelConfig,
    PackingConfig,
    SyntheticDataset,
)
from sae_sweep.config.errors import ConfigError, SaeSweepError, first_line
from sae_sweep.config.folders import expanded
from sae_sweep.config.mixture import DomainDataset, MixDataset
from sae_sweep.config.names import escaped, escaped_lines, plain_name
from sae_sweep.config.plain import digest, flatten
from sae_sweep.config.run import RunConfig, run_from_dict
from sae_sweep.config.shape import shape_problem
from sae_sweep.config.tracking import TrackingConfig, artifact_name
from sae_sweep.config.training import (
    KEPT_RESIDUALS_BYTES,
    ActivationsConfig,
    EvaluationConfig,
    InitConfig,
    OptimizerConfig,
)
from sae_sweep.config.typed import build, typed

__all__ = [
    "ARCHITECTURES",
    "KEPT_RESIDUALS_BYTES",
    "SPARSITY_KEYS",
    "SYNTHETIC",
    "SYNTHETIC_WIDTH",
    "ActivationsConfig",
    "ArchitectureConfig",
    "BatchTopKConfig",
    "CommandConfig",
    "ConfigError",
    "DatasetConfig",
    "DomainDataset",
    "EmbeddedDataset",
    "EvaluationConfig",
    "FaithfulDataset",
    "FilesDataset",
    "HubDataset",
    "InitConfig",
    "JumpReLUConfig",
    "LauncherConfig",
    "MatchingConfig",
    "MixDataset",
    "ModelConfig",
    "OptimizerConfig",
    "PackingConfig",
    "PathsConfig",
    "PlanConfig",
    "ReLUConfig",
    "RunConfig",
    "SaeSweepError",
    "SlurmConfig",
    "SyntheticDataset",
    "TopKConfig",
    "TrackingConfig",
    "artifact_name",
    "build",
    "digest",
    "escaped",
    "escaped_lines",
    "expanded",
    "first_line",
    "flatten",
    "is_count",
    "plain_name",
    "run_from_dict",
    "shape_problem",
    "short_key",
    "typed",
]
