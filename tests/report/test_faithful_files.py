"""Tables of SFR and FFR: differences from the sampled text, and FFR by both of its constants."""

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from pyarrow import parquet

from sae_sweep.analysis.bootstrap import Estimate
from sae_sweep.analysis.faithfulness import TextResult, pooled
from sae_sweep.report.faithful_files import FREQUENT, LEVELS, Sensitivity, faithful_text, write_faithful

NONE = Estimate(math.nan, math.nan, math.nan, 2)


def result(text: str, shared: list[int], fake: list[int], setting: str = "k=4", **marks: bool) -> TextResult:
    return TextResult(
        setting=setting,
        text=text,
        sampled=marks.get("sampled", False),
        runs=(f"{text} 1", f"{text} 2"),
        undertrained=marks.get("undertrained", False),
        pairs=bool(shared),
        sfr=pooled(torch.tensor([shared])[: len(shared)].bool()),
        ffr=pooled(torch.tensor([fake, fake]).bool()),
        sfr_over_seeds=NONE,
    )


OWN = result("own", [1, 1, 1, 0], [0, 0, 0, 0], sampled=True)
OTHER = result("other", [1, 0, 0, 0], [1, 0, 0, 0], undertrained=True)
APART = result("apart", [1, 0, 0, 0], [1, 0, 0, 0], setting="k=8")
ALONE = result("alone", [], [0, 1, 0, 0])


def test_a_text_is_compared_with_the_sampled_one_of_its_own_setting() -> None:
    results = [OWN, OTHER, APART, ALONE]
    lines = {line.split()[1]: line for line in faithful_text(results, 200).splitlines()[2:6]}
    assert "75.0 [" in lines["own"]
    assert "(sampled)" in lines["own"]
    assert "+50.0 [" in lines["other"]
    assert "-25.0 [" in lines["other"]
    assert lines["other"].rstrip().endswith("still its start")
    assert "+" not in lines["apart"]
    assert " - " in lines["alone"]  # one seed has no pairs
    narrow = faithful_text(results, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "still its start" in narrow


@pytest.fixture
def shares() -> torch.Tensor:
    """Activity of six features at all levels, less at higher ones."""
    levels = torch.linspace(1, 0.2, len(LEVELS), dtype=torch.float64)
    return levels[:, None] * torch.tensor([0.0, 0.015, 0.06, 0.15, 0.3, 0.9], dtype=torch.float64)


def test_ffr_is_written_for_every_pair_of_constants(
    tmp_path: Path, shares: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **keys: None)
    none = torch.zeros_like(shares)
    write_faithful(tmp_path, [OWN, OTHER], [Sensitivity("k=4", "own", [shares, none])])
    rows = parquet.read_table(tmp_path / "sensitivity.parquet").to_pylist()
    assert len(rows) == len(LEVELS) * len(FREQUENT)
    for row in rows:
        level = shares[LEVELS.index(row["active_above"])].tolist()
        twin = sum(share > row["frequent_above"] for share in level) / len(level) / 2  # of two SAEs
        assert row["ffr"] == pytest.approx(twin)
    section = json.loads((tmp_path / "section.json").read_text())
    shown = [cell for row in section["tables"][1]["rows"] for cell in row[3:]]
    assert shown == pytest.approx([100 * row["ffr"] for row in rows])
