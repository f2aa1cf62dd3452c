"""The runs on the page: their table, their training curves, and how they were made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sae_sweep.config import RunConfig, SaeSweepError
from sae_sweep.config.swept import named_keys, swept_keys
from sae_sweep.report.runs_table import runs_table
from sae_sweep.store import (
    PlannedRun,
    RunFolder,
    Status,
    SweepFolder,
    planned_run,
    read_metrics,
    read_plan,
    read_shown_status,
)
from sae_sweep.tracking.history import curve_points

_POINTS = 200
"""Points of a curve on the page; a longer history is thinned out evenly."""
_CURVES = {
    "loss": "loss",
    "mse": "mean squared error",
    "explained_variance": "explained variance",
    "l0": "L0 (active features per token)",
    "dead": "dead features",
    "lr": "learning rate",
}
_EPOCHS = "epochs"
_METRICS = {
    "explained_variance": ("expl. var.", "Explained variance (R²) on held-out tokens, SAE-input space", 3),
    "explained_variance_rare": (
        *("rare", "Explained variance on the rarest tokens, which are a twentieth of the held-out text"),
        3,
    ),
    "ce_recovered_zero": ("CE rec.", "Cross-entropy recovered, from zero ablation", 3),
    "ce_delta": ("ΔCE", "Cross-entropy with the SAE spliced in, minus that without (nats)", 3),
    "l0": ("L0", "Active features per token", 1),
    "alive": ("alive", "Features that fire on the held-out text", 0),
    "init_match": ("own start", "Share of features that still match what the SAE started from", 3),
    "new_features": ("new", "Share of features that do not match the SAE that it is fine-tuned from", 3),
    "start_explained_variance": (
        *("general expl. var.", "Explained variance of the SAE that it is fine-tuned from, on the same text"),
        3,
    ),
    "start_explained_variance_rare": (
        *("general rare", "Explained variance of that SAE on the rarest tokens"),
        3,
    ),
    "start_ce_delta": ("general ΔCE", "ΔCE of the SAE that it is fine-tuned from, on the same text", 3),
    "start_alive": ("general alive", "Features of that SAE that fire on the same text", 0),
    "trained_tokens": ("tokens", "SAE inputs that it was trained on", 0),
    "seconds": ("seconds", "Training time", 0),
}
"""Column of the table, its explanation, and its decimals, by metric."""


class Runs(NamedTuple):
    """What is known of the runs of a sweep, in the order of its plan."""

    names: list[str]
    shorts: list[str]
    """What tells them apart."""
    ids: list[str]
    states: list[str]
    planned: list[PlannedRun | None]
    """None where a config cannot be read."""
    table: Mapping[str, list[Any]]
    """Columns of `runs.parquet`."""
    folder: SweepFolder

    def places(self, names: Iterable[str]) -> list[int]:
        """Positions of runs by name; those that are not of this sweep any more are left out."""
        known = {name: place for place, name in enumerate(self.names)}
        return [known[name] for name in names if name in known]

    def folder_of(self, run: int) -> RunFolder:
        return self.folder.run(self.names[run])

    @property
    def configs(self) -> dict[int, RunConfig]:
        return {place: run.config for place, run in enumerate(self.planned) if run is not None}

    @property
    def fingerprints(self) -> list[Mapping[str, str]]:
        """Fingerprints of the text and the weights, for each run whose config is known."""
        return [run.fingerprints for run in self.planned if run is not None]

    @property
    def starts(self) -> list[str]:
        """Label of the SAE that each run is fine-tuned from; empty if its start was drawn."""
        return ["" if run is None else run.config.init.label for run in self.planned]

    def done(self) -> list[int]:
        """Positions of the finished runs."""
        return [place for place, state in enumerate(self.states) if state == "done"]


def read_runs(folder: SweepFolder) -> Runs:
    """Read the runs of a sweep, as their files are now.

    Raises:
        SaeSweepError: if the plan cannot be read.
    """
    table = runs_table(folder)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    planned = [_planned(record, folder) for record in read_plan(folder)["runs"]]
    return Runs(columns["name"], columns["short"], columns["id"], columns["state"], planned, columns, folder)


def table(runs: Runs, curves: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The table of runs: what differs between them, final metrics, and how often each read its text.

    Metrics that are damaged are named among `problems`.
    """
    swept = dict.fromkeys(key for keys in swept_keys(list(runs.configs.values())) for key in keys)
    columns: list[dict[str, Any]] = [
        {"id": key, "label": key, "title": f"Swept key {key}"} for key in swept if key in runs.table
    ]
    columns += [
        {"id": key, "label": label, "title": title, "digits": digits}
        for key, (label, title, digits) in _METRICS.items()
        if any(value is not None for value in runs.table.get(key, ()))
    ]
    known = [column["id"] for column in columns]
    rows = [[runs.table[key][place] for key in known] for place in range(len(runs.names))]
    _add_epochs(columns, rows, curves)
    for place in runs.done():
        try:
            read_metrics(runs.folder_of(place), runs.ids[place])
        except SaeSweepError as error:
            problems.append(str(error))
    notes = {"error": runs.table["error"], "mixed": runs.table["mixed"], "starts": runs.starts}
    return {"columns": columns, "rows": rows, "states": runs.states, **notes}


def _add_epochs(columns: list[dict[str, Any]], rows: list[list[Any]], curves: Mapping[str, Any]) -> None:
    """Add the column that says how often each run read its text, where that was logged."""
    epochs = {one["run"]: one["epochs"] for one in curves["runs"] if one["epochs"] is not None}
    if epochs:
        title = "Times that the text was read, by whole documents: near 0, a run saw few of them"
        columns.append({"id": _EPOCHS, "label": "epochs", "title": title, "digits": 2})
        for place, row in enumerate(rows):
            row.append(epochs.get(place))


def curves(runs: Runs, problems: list[str]) -> dict[str, Any]:
    """Training curves of each run, thinned out; a damaged history is named among `problems`."""
    found, seen = [], Counter[str]()
    for place in range(len(runs.names)):
        try:
            points = curve_points(runs.folder_of(place).history)
        except SaeSweepError as error:
            problems.append(str(error))
            continue
        points = [point for point in points if "loss" in point]
        step = -(-len(points) // _POINTS) or 1
        kept = points[::-1][::step][::-1]  # the last point is always there
        values = {name: [point.get(name) for point in kept] for name in _CURVES}
        known = {name: column for name, column in values.items() if any(one is not None for one in column)}
        seen.update(known)
        if kept:
            epochs = kept[-1].get(_EPOCHS)
            tokens = [point["tokens"] for point in kept]
            found.append({"run": place, "tokens": tokens, "values": known, "epochs": epochs})
    return {"metrics": {name: label for name, label in _CURVES.items() if name in seen}, "runs": found}


def layers(runs: Runs, compared: Sequence[int]) -> list[dict[str, Any]]:
    """Compared runs that differ in their layer alone, in the order of layers."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    keys = dict(zip(runs.configs, swept_keys(list(runs.configs.values())), strict=True))
    for place in compared:
        if place in keys and "layer" in keys[place]:
            rest = {key: value for key, value in keys[place].items() if key != "layer"}
            groups.setdefault(tuple(sorted((key, str(value)) for key, value in rest.items())), []).append(
                place
            )
    found = []
    for rest_keys, places in groups.items():
        if len(places) > 1:
            places.sort(key=lambda place: runs.configs[place].layer)
            label = ", ".join(f"{key} {value}" for key, value in rest_keys)
            found.append({"label": label, "runs": places, "layers": [runs.configs[p].layer for p in places]})
    return found


def methods(runs: Runs) -> dict[str, Any]:
    """Provenance: keys that all runs share, versions, machines, what `auto` became, and content."""
    flat = [named_keys(config) for config in runs.configs.values()]
    shared = {
        key: flat[0][key]
        for key in (flat[0] if flat else {})
        if all(one.get(key) == flat[0][key] for one in flat)
    }
    statuses = list(_statuses(runs))
    return {
        "config": {key: str(value) for key, value in shared.items()},
        "versions": _counted(status.versions for status in statuses),
        "resolved": _counted(status.resolved for status in statuses),
        "fingerprints": _counted(map(_content, runs.configs.values(), runs.fingerprints)),
        "fell_back": _counted(status.fell_back for status in statuses),
        "hosts": _counted({"host": status.host} for status in statuses if status.host),
        "runs": len(runs.names),
    }


def _planned(record: Mapping[str, Any], folder: SweepFolder) -> PlannedRun | None:
    try:
        return planned_run(record, folder)
    except SaeSweepError:
        return None


def _statuses(runs: Runs) -> Iterator[Status]:
    for name, run_id in zip(runs.names, runs.ids, strict=True):
        try:
            yield read_shown_status(runs.folder.run(name), run_id)
        except SaeSweepError:
            continue  # its row says that it is damaged


def _content(config: RunConfig, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints by what they are of."""
    of = {"corpus": f"text {config.dataset.name}", "model": f"model {config.model.label}"}
    return {of.get(what, what): value for what, value in fingerprints.items()}


def _counted(mappings: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Each key with each of its values and the number of runs that have it."""
    counts = Counter((key, str(value)) for one in mappings for key, value in one.items())
    return [[key, value, count] for (key, value), count in sorted(counts.items())]
