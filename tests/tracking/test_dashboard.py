"""The view and the report of a sweep, saved at a stand-in of W&B, or written where nobody is logged in."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import SaeSweepError, TrackingConfig
from sae_sweep.store import SweepFolder
from sae_sweep.tracking.dashboard import Dashboard, make_dashboard
from tests.tracking.stand_in import StandIn, serve

SWEPT = ("dataset", "seed", "optimizer/lr")
KEY = "0123456789abcdef" * 3
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / 'owt=2 <b> "pile\'s" é 🎉')
    folder.root.mkdir()
    return folder


@pytest.fixture
def server(fresh_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with serve() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", "online")
        yield found


def made(sweep: SweepFolder, **tracking: Any) -> tuple[Dashboard, dict[str, Any]]:
    found = make_dashboard(sweep, TrackingConfig(**tracking), SWEPT)
    return found, json.loads(found.spec.read_text())


def panels(spec: Any) -> list[dict[str, Any]]:
    """All panels anywhere in a spec."""
    found = []
    if isinstance(spec, dict):
        found += [spec] if "viewType" in spec and "config" in spec else []
        spec = list(spec.values())
    if isinstance(spec, list):
        found += [panel for inner in spec for panel in panels(inner)]
    return found


def filters(spec: Any) -> list[Any]:
    """All filters of sets of runs anywhere in a spec."""
    found = []
    if isinstance(spec, dict):
        found += [spec["filters"]["filters"]] if "filterFormat" in str(spec.get("filters")) else []
        spec = list(spec.values())
    if isinstance(spec, list):
        found += [one for inner in spec for one in filters(inner)]
    return found


def check(spec: Any, sweep: SweepFolder) -> None:
    """A view or report has its panels, and shows this sweep's runs only."""
    text = json.dumps(spec)
    kinds = {panel["viewType"] for panel in panels(spec)}
    assert {"Bar Chart", "Media Browser", "Run History Line Plot", "Parallel Coordinates Plot"} <= kinds
    for key in (*SWEPT, "several"):
        assert f"matched/{key}" in text
    for key in ("matching/heat_map", "matching/matrix", "runs/metrics", "matching/pairs", "train/loss"):
        assert key in text
    [axes] = [
        panel["config"]["columns"] for panel in panels(spec) if panel["viewType"].startswith("Parallel")
    ]
    assert [axis["accessor"] for axis in axes][:3] == [f"config:{key}.value" for key in SWEPT]
    grouped = [panel["config"].get("groupBy") for panel in panels(spec)]
    assert {f"{key}.value" for key in SWEPT} <= {*grouped}
    assert filters(spec)
    for one in filters(spec):
        assert one[0]["key"] == {"section": "config", "name": "sweep_name"}
        assert (one[0]["op"], one[0]["value"]) == ("=", sweep.root.name)


def test_offline_both_are_written_beside_the_sweep(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    found, written = made(sweep)
    assert found == Dashboard(sweep.dashboard, None, None)
    assert written["project"] == "theirs"
    for name in ("view", "report"):
        check(written[name]["spec"], sweep)
        assert "owt" in written[name]["displayName"]
    assert capfd.readouterr() == ("", "")


def test_online_both_are_saved_and_a_second_time_replaced(
    sweep: SweepFolder, server: StandIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first, written = made(sweep)
    view, report = written["view"], written["report"]
    assert {saved["type"] for saved in server.views.values()} == {"project-view", "runs"}
    for saved in server.views.values():
        assert (saved["entityName"], saved["projectName"]) == ("team", "sae_sweep")
        check(json.loads(saved["spec"]), sweep)
    assert server.projects == ["sae_sweep"]  # made, for the report
    assert (view["url"], report["url"]) == (first.view, first.report)
    assert "/team/sae_sweep?nw=" in view["url"]
    assert "/team/sae_sweep/reports/" in report["url"]

    monkeypatch.setenv("WANDB_MODE", "offline")
    made(sweep)  # keeps the ids
    monkeypatch.setenv("WANDB_MODE", "online")
    again, written = made(sweep)
    assert again == first
    assert [written[name]["id"] for name in ("view", "report")] == [view["id"], report["id"]]
    assert len(server.views) == 2
    made(sweep, project="another")
    assert len(server.views) == 4
    assert capfd.readouterr() == ("", "")


def test_what_wandb_refuses_is_one_line_and_written(sweep: SweepFolder, server: StandIn) -> None:
    server.refuses = True
    with pytest.raises(SaeSweepError, match="W&B did not save the view and the report") as refused:
        made(sweep)
    assert str(sweep.dashboard) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert json.loads(sweep.dashboard.read_text())["report"]["id"] == ""


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(
    ("url", "why"), [("http://127.0.0.1:9", "does not answer"), (None, "no key for http://127.0.0.1")]
)
def test_where_wandb_is_not_reached_the_specs_are_written(
    sweep: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str | None,
    why: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with serve() as there:
        monkeypatch.setenv("WANDB_BASE_URL", url or there.url)
        assert made(sweep)[0].view is None
    assert caplog.text.count("W&B cannot be reached (") == 1
    assert why in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"server": 1}', '{"view": []}'])
def test_a_damaged_file_is_written_anew(sweep: SweepFolder, content: str) -> None:
    sweep.dashboard.write_text(content)
    assert made(sweep)[1]["view"]["id"] == ""


def test_a_missing_package_is_one_line(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SaeSweepError, match=r"pip install 'sae-sweep\[dashboard\]'$"):
        make_dashboard(sweep, TrackingConfig(mode="offline"), SWEPT)
    assert not sweep.dashboard.exists()
