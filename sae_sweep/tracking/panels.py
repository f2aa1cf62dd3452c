"""The view and the report of a sweep, as objects of W&B's own library for them."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

_SEVERAL = "several"  # as in analysis.summary: the pairs that differ in more than one key
_MEASURES = ("eval/explained_variance", "eval/ce_recovered_zero", "eval/l0")
_CURVES = ("train/loss", "train/explained_variance", "train/l0", "train/dead")
_LONGEST_TITLE = 128


class Place(NamedTuple):
    """The project and group of a sweep's runs in W&B, and the keys that tell the runs apart."""

    entity: str
    """Empty: unknown, as long as nobody is logged in."""
    project: str
    sweep: str
    swept: Sequence[str]
    """Swept keys, as W&B has them."""


def make_view(place: Place) -> "Workspace":
    """A view of the project with the runs of the sweep: what the report has, and every other logged key."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ("Matched share by key", _matched(place)),
        ("Runs", _tables()),
        ("Parallel coordinates", [_parallel(place)]),
        *((f"Training by {key}", _grouped(key)) for key in place.swept),
        ("Training", _curves()),
        ("Evaluation", _evaluation()),
    ]
    columns = ["run:displayName", *(f"config:{key}.value" for key in place.swept)]
    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=_without_symbols(place.sweep),
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(
            filters=_of_sweep(place),
            pinned_columns=[*columns, *(f"summary:{name}" for name in _MEASURES)],
        ),
        auto_generate_panels=True,
    )


def make_report(place: Place) -> "Report":
    """A report on the sweep: what moves the features, the matrix, and how the runs trained."""
    import wandb_workspaces.reports.v2 as wr

    parts = [
        ("What moves the features", "comparison", _matched(place)),
        ("All runs and pairs", "comparison", _tables()),
        ("Which keys go with which results", "train", [_parallel(place), *_evaluation()]),
        *((f"Training by {key}", "train", _grouped(key)) for key in place.swept),
        ("Training", "train", _curves()),
    ]
    blocks: list[Any] = [
        wr.P(
            f"Sweep {place.sweep}. Matched: share of the features of one SAE that have one in the other with "
            "a decoder cosine above the threshold, over the pairs that differ in one key alone."
        ),
        wr.TableOfContents(),
    ]
    for title, job_type, panels in parts:
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[_runset(place, job_type)], panels=panels)]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=place.sweep[:_LONGEST_TITLE],
        description="Made by sae_sweep, task=dashboard",
        blocks=blocks,
        width="fluid",
    )


def _runset(place: Place, job_type: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.Runset(
        entity=place.entity,
        project=place.project,
        name=job_type,
        filters=f"{_of_sweep(place)} and Metric('JobType') == {job_type!r}",
    )


def _of_sweep(place: Place) -> str:
    """A filter for the runs of the sweep, as W&B's library parses it: as Python, once it changed each `=`.

    Escapes keep it from changing those of a name; its own objects for a filter quote no quotes.
    """
    name = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in place.sweep)
    return f"Config('sweep_name') == '{name}'"


def _matched(place: Place) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    keys = [f"matched/{key}" for key in (*place.swept, _SEVERAL)]
    return [
        wr.BarPlot(title="Matched share by the key that differs", metrics=keys, layout=_at(0, 0, 8, 8)),
        wr.MediaBrowser(
            title="Matching matrix (hover over it)",
            media_keys=["matching/heat_map"],
            layout=_at(8, 0, 16, 16),
        ),
        wr.MediaBrowser(title="Matching matrix", media_keys=["matching/matrix"], layout=_at(0, 16, 12, 12)),
        wr.MediaBrowser(title="Best cosines", media_keys=["matching/cosines"], layout=_at(12, 16, 12, 12)),
    ]


def _tables() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    names = ("runs/metrics", "matching/pairs", "matching/shares")
    return [
        wr.WeavePanelSummaryTable(table_name=name, layout=_at(0, 10 * row, 24, 10))
        for row, name in enumerate(names)
    ]


def _parallel(place: Place) -> Any:
    import wandb_workspaces.reports.v2 as wr

    axes = [*map(wr.Config, place.swept), *map(wr.SummaryMetric, _MEASURES)]
    return wr.ParallelCoordinatesPlot(
        title="Swept keys and results",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes],
        layout=_at(0, 0, 24, 10),
    )


def _grouped(key: str) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(
            title=f"{name} by {key}",
            x="tokens",
            y=[name],
            groupby=wr.Config(key),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=_at(12 * column, 0, 12, 8),
        )
        for column, name in enumerate(_CURVES[:2])
    ]


def _curves() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(title=name, x="tokens", y=[name], layout=_at(12 * (i % 2), 8 * (i // 2), 12, 8))
        for i, name in enumerate(_CURVES)
    ]


def _evaluation() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    variance, recovered, l0 = map(wr.SummaryMetric, _MEASURES)
    return [
        wr.ScatterPlot(title="Sparsity and explained variance", x=l0, y=variance, layout=_at(0, 10, 8, 8)),
        wr.ScatterPlot(title="Sparsity and CE recovered", x=l0, y=recovered, layout=_at(8, 10, 8, 8)),
        wr.BarPlot(
            title="Match to the own start (above 0.1: undertrained, or fine-tuned)",
            metrics=["eval/init_match"],
            layout=_at(16, 10, 8, 8),
        ),
    ]


def _at(x: int, y: int, w: int, h: int) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.Layout(x=x, y=y, w=w, h=h)


def _without_symbols(name: str) -> str:
    """The name of a view, for which W&B takes no symbols: no emoji, nor `=` or `<`."""
    return "".join("-" if unicodedata.category(c).startswith("S") else c for c in name)
