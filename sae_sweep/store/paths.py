"""Paths of everything that a sweep writes."""

from dataclasses import dataclass
from pathlib import Path

from sae_sweep.config import CommandConfig, ConfigError, SaeSweepError, expanded
from sae_sweep.store.home import user_cache

CHECKPOINTS = ("state.safetensors", "before.safetensors")
"""File names of a run's newest checkpoint, and of the one before."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def history(self) -> Path:
        return self.root / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def sae(self) -> Path:
        return self.root / "sae"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def export(self) -> Path:
        """The features in the forms of other tools; a folder per form."""
        return self.root / "export"


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep: its runs, and the results over all runs."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def runs_table(self) -> Path:
        return self.root / "runs.parquet"

    @property
    def matching(self) -> Path:
        return self.root / "analysis" / "matching"

    @property
    def dose_response(self) -> Path:
        """How many features are found again by the share of a text in what SAEs read."""
        return self.root / "analysis" / "dose_response"

    @property
    def fine_tuning(self) -> Path:
        """Fine-tuned SAEs beside the one that they started from."""
        return self.root / "analysis" / "fine_tuning"

    @property
    def families(self) -> Path:
        """What features the SAEs of a hook share; a folder per hook where there are several."""
        return self.root / "analysis" / "families"

    @property
    def transfer(self) -> Path:
        """Every SAE on every dataset of the sweep."""
        return self.root / "analysis" / "transfer"

    @property
    def family_frequency(self) -> Path:
        """Families that datasets share, by how often their triggers occur in each."""
        return self.root / "analysis" / "family_frequency"

    def diff(self, names: str) -> Path:
        """How two datasets differ; `names` are theirs."""
        return self.root / "analysis" / f"diff_{names}"

    @property
    def tables(self) -> Path:
        return self.root / "analysis" / "tables"

    @property
    def features(self) -> Path:
        """Figures and tables of what the features of several runs do."""
        return self.root / "analysis" / "features"

    @property
    def faithful(self) -> Path:
        """SFR and FFR of the SAEs of each text."""
        return self.root / "analysis" / "faithful"

    @property
    def figures(self) -> Path:
        return self.root / "analysis" / "figures"

    @property
    def report(self) -> Path:
        """The page that shows everything the sweep found."""
        return self.root / "report.html"

    @property
    def details(self) -> Path:
        """What the page reads of all features, where it holds a sample of them."""
        return self.root / "report_features"

    @property
    def wandb(self) -> Path:
        return self.root

    @property
    def dashboard(self) -> Path:
        """What `task=dashboard` made for W&B: the specs of a view and a report, and where they were saved."""
        return self.root / "wandb-dashboard.json"

    @property
    def jobs(self) -> Path:
        """Folder of jobs in other processes: frozen groups, tickets and logs."""
        return self.root / "jobs"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.root / name)


def find_sweep(command: CommandConfig) -> SweepFolder:
    """Find the folder of the sweep that the command names.

    Raises:
        ConfigError: listing the sweeps on disk, if the command names none.
        SaeSweepError: the same, if there is none of that name.
    """
    root = expanded(command.paths.output).resolve()
    name = command.sweep or command.experiment
    there = ", ".join(sorted(plan.parent.name for plan in root.glob("*/plan.json"))) or "none"
    if name is None:
        other = ", or sae=FOLDER" if command.task in ("analyse", "diff") else ""
        raise ConfigError(
            [f"task={command.task} needs sweep=NAME, a folder below {root}; there is {there}{other}"]
        )
    folder = SweepFolder(root / name)
    if not folder.plan.exists():
        raise SaeSweepError(
            f"{folder.root}: no sweep there (no plan.json); below paths.output there is {there}"
        )
    return folder


def cache_folder(configured: str | None) -> Path:
    """Cache folder: `paths.cache` if it is set, else `sae_sweep` in the user's cache folder."""
    if configured:
        return expanded(configured)
    return user_cache() / "sae_sweep"
