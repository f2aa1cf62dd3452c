"""Finished runs of a sweep, as they are compared with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sae_sweep.analysis import ComparisonEntry
from sae_sweep.analysis.matching import match_to_own_start
from sae_sweep.analysis.measured import Subject
from sae_sweep.config import RunConfig, digest, flatten
from sae_sweep.config.swept import swept_keys
from sae_sweep.report import read_densities, read_mean_activations
from sae_sweep.saes import SAE, load_sae, starting_decoder
from sae_sweep.store import PlannedRun, RunFolder, read_config, read_metrics, read_shown_status, unreadable
from sae_sweep.tasks.on_text import Reader


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    run: PlannedRun
    config: RunConfig
    """As it was trained."""
    entry: ComparisonEntry

    @property
    def hook(self) -> tuple[str, int]:
        """The model, by its weights' fingerprint, and the layer whose residuals it reads."""
        return self.run.fingerprints.get("model", self.config.model.label), self.config.layer

    @property
    def reader(self) -> Reader:
        return Reader(self.entry.name, self.config, self._load, self.run)

    def _load(self) -> SAE:
        return load_sae(self.run.folder.sae, self.run.run_id)

    @property
    def subject(self) -> Subject:
        d_sae, d_in = self.entry.decoder.shape
        return Subject(
            self.entry,
            self._load,
            lambda: starting_decoder(self.config, d_in, d_sae, self.run.run_id),
        )


def read_finished(run: PlannedRun, threshold: float) -> Finished:
    """Read config and SAE of a finished run; `with_keys` adds the swept keys when all runs are known.

    Raises:
        SaeSweepError: one line with the file and the remedy, if one of its files is damaged.
    """
    folder = run.folder
    config = _config(folder, run.config)
    decoder = load_sae(folder.sae, run.run_id).W_dec.detach()
    metrics = read_metrics(folder, run.run_id)
    init_match = metrics.init_match
    if metrics.values.get("init_match_threshold") != threshold:
        init_match = match_to_own_start(decoder, config, run.run_id, threshold)
    entry = ComparisonEntry(
        name=run.name,
        keys={},
        decoder=decoder,
        init_match=init_match,
        densities=read_densities(folder.features, run.run_id, len(decoder)),
        mean_activations=read_mean_activations(folder.features, run.run_id, len(decoder)),
        mixed=bool(read_shown_status(folder, run.run_id).mixed),
        start=config.init.label,
    )
    return Finished(run, config, entry)


def with_keys(found: Sequence[Finished]) -> list[Finished]:
    """The runs with the swept keys that tell them apart."""
    keys = swept_keys(labelled([one.config for one in found], [one.run.fingerprints for one in found]))
    return [replace(one, entry=replace(one.entry, keys=own)) for one, own in zip(found, keys, strict=True)]


def labelled(configs: Sequence[RunConfig], contents: Sequence[Mapping[str, str]]) -> list[RunConfig]:
    """The configs with one label for each text, model and start, whatever the commands called them."""
    texts = _labels([config.dataset.name for config in configs], [one.get("corpus") for one in contents])
    models = _labels([config.model.label for config in configs], [one.get("model") for one in contents])
    starts = _labels([config.init.label for config in configs], [one.get("start") for one in contents])
    return [
        replace(
            config,
            dataset=replace(config.dataset, name=text),
            model=replace(config.model, name=model),
            init=replace(config.init, sae=start or None),
        )
        for config, text, model, start in zip(configs, texts, models, starts, strict=True)
    ]


def _labels(labels: Sequence[str], contents: Sequence[str | None]) -> list[str]:
    """The first label of each content, with its fingerprint if another content has it too."""
    firsts: dict[str, str] = {}
    for label, content in zip(labels, contents, strict=True):
        firsts.setdefault(content or label, label)
    taken = list(firsts.values())
    found = []
    for label, content in zip(labels, contents, strict=True):
        first = firsts[content or label]
        found.append(f"{first}-{digest(content)[:6]}" if content and taken.count(first) > 1 else first)
    return found


def _config(folder: RunFolder, planned: RunConfig) -> RunConfig:
    """Config of a run as it was trained, which names the same weights as the plan's."""
    config = read_config(folder)
    ours, theirs = flatten(config.identity()), flatten(planned.identity())
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        raise unreadable(
            folder.config,
            f"it differs from plan.json in {', '.join(differing)}",
            "remove it and launch the sweep again",
        )
    return config
