"""`task=match` on artificial sweeps with planted features, and on two SAEs."""

import dataclasses
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from sae_sweep.analysis.measures import MEASURES
from sae_sweep.report.parquet import write_parquet
from sae_sweep.saes import build_sae, load_sae, save_sae
from sae_sweep.store import planned_run, write_json
from sae_sweep.store.config_file import write_config
from sae_sweep.store.paths import RunFolder, SweepFolder
from tests.conftest import Cli
from tests.study.helpers import BASE, read_csv, write_sweep

OWN = ("tracking=none", "device=cpu")
UNIVERSAL, DATASET, SEED, NONE = 58 + 8, 15, 8, 7
"""Features of each run, of 96, that are in all runs, in those of its dataset, of its seed, in no other."""


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **keys: None)


def sweep_of(root: Path, **axes: list) -> SweepFolder:
    facts = [
        dataclasses.replace(BASE, **{"dictionary": 4, **dict(zip(axes, values, strict=True))})
        for values in itertools.product(*axes.values())
    ]
    folder = SweepFolder(root / "multirun" / "planted")
    write_sweep(folder.root, facts)
    for entry in json.loads(folder.plan.read_text())["runs"]:
        write_config(folder.run(entry["name"]), planned_run(entry, folder).config)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return sweep_of(tmp_path, dataset=["owt", "tinystories"], seed=[1, 2, 3])


def undertrain(folder: RunFolder) -> None:
    write_json(folder.metrics, {**json.loads(folder.metrics.read_text()), "init_match": 0.4})


def test_planted_features_are_families_of_their_kind(cli: Cli, sweep: SweepFolder) -> None:
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    kinds = {(row["kind"], row["key"], row["value"]): row for row in read_csv(sweep.families / "kinds.csv")}
    assert int(kinds["universal", "", ""]["families"]) == UNIVERSAL
    assert int(kinds["only", "dataset", "library_docs"]["families"]) == DATASET
    assert int(kinds["only", "seed", "2"]["families"]) == SEED
    assert float(kinds["only", "dataset", ""]["low"]) > float(kinds["only", "dataset", ""]["null_high"])
    assert "live in one dataset only" in result.out
    assert "families" in result.out.split("Files")[1]
    families = pq.read_table(sweep.families / "families.parquet").to_pylist()
    members = pq.read_table(sweep.families / "members.parquet").to_pylist()
    assert families[0]["runs"] == 6
    assert "universal" in families[0]["kinds"]
    assert families[0]["density"] == pytest.approx(0.01)
    assert families[0]["mean_activation"] == pytest.approx(1.5)
    assert sum(one["runs"] for one in families) == len(members)
    presence = load_file(sweep.families / "presence.safetensors")["presence"]
    assert presence.sum(1).tolist() == [one["runs"] for one in families]
    runs = json.loads((sweep.families / "runs.json").read_text())["runs"]
    assert [one["in_no_family"] for one in runs.values()] == pytest.approx([NONE] * 6, abs=1)
    orphans = pq.read_table(sweep.families / "orphans.parquet").to_pylist()
    assert len(orphans) == sum(one["in_no_family"] for one in runs.values())
    for row in orphans[:3]:
        ours, theirs = (load_sae(sweep.run(row[key]).sae).W_dec for key in ("run", "nearest_run"))
        unit = torch.nn.functional.normalize(theirs, dim=1)
        cosines = unit @ torch.nn.functional.normalize(ours[row["feature"]], dim=0)
        assert cosines.argmax().item() == row["nearest_feature"]
        assert cosines.max().item() == pytest.approx(row["cosine"], abs=1e-6)
    stability = pq.read_table(sweep.families / "stability.parquet").to_pydict()
    assert set(stability["seeds"]) == {2}
    assert sum(share == 1 for share in stability["share"]) == 6 * (UNIVERSAL + DATASET)
    assert len(read_csv(sweep.families / "subspaces.csv")) == 6


def test_measures_stand_beside_nulls_by_pair_and_by_key(cli: Cli, sweep: SweepFolder) -> None:
    assert cli("task=match", "sweep=planted", "matching.nulls=[random,initial]", *OWN).code == 0
    by_key = {
        (row["key"], row["measure"], row["chance"]): row
        for row in read_csv(sweep.matching / "measures_by_key.csv")
        if row["features"] == "all"
    }
    assert {name for _, name, _ in by_key} == {"ratio", "mmcs", "mutual"}
    assert {null for _, _, null in by_key} == {"random", "initial"}
    of_dataset = by_key["dataset", "mutual", "random"]
    assert float(of_dataset["value"]) == pytest.approx((UNIVERSAL + SEED) / 96, abs=0.02)
    assert float(of_dataset["null"]) < 0.1
    pairs = pq.read_table(sweep.matching / "measures.parquet").to_pylist()
    assert {row["varied"] for row in pairs} == {"dataset", "seed"}
    curves = pq.read_table(sweep.matching / "curves.parquet").to_pylist()
    assert {row["chance"] for row in curves} == {"", "random", "initial"}
    assert (curves[0]["threshold"], curves[69]["threshold"]) == (0.3, 0.99)


def test_all_measures_are_there_when_asked_for(cli: Cli, sweep: SweepFolder) -> None:
    result = cli("task=match", "sweep=planted", "matching.measures=all", "matching.nulls=[rotated]", *OWN)
    assert result.code == 0, result.err
    rows = read_csv(sweep.matching / "measures_by_key.csv")
    assert {row["measure"] for row in rows} == {
        "ratio",
        "mmcs",
        "mutual",
        "assigned",
        "mcc",
        "shared",
        "soft",
    }
    assert {row["chance"] for row in rows} == {"rotated"}


def test_undertrained_runs_are_in_no_family_and_old_families_go(cli: Cli, sweep: SweepFolder) -> None:
    assert cli("task=match", "sweep=planted", *OWN).code == 0
    runs = sorted(path.parent for path in sweep.root.glob("*/metrics.json"))
    undertrain(RunFolder(runs[0]))
    result = cli("task=match", "sweep=planted", *OWN)
    assert "Left out: 1 that still match" in result.out
    assert json.loads((sweep.families / "runs.json").read_text())["undertrained"] == [runs[0].name]
    for run in runs[1:5]:
        undertrain(RunFolder(run))
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    assert "no families: 1 of its 6 SAEs trained enough" in result.err
    assert "Families" not in result.out
    assert not sweep.families.exists()


def test_each_hook_has_its_own_families(cli: Cli, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, layer=[3, 8], seed=[1, 2])
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    assert sorted(path.name for path in sweep.families.iterdir()) == ["L3", "L8"]
    assert "Hook L3 (the tables of L8 are in analysis/families/)" in result.out
    assert len(json.loads((sweep.families / "L8" / "runs.json").read_text())["runs"]) == 2


def test_rows_of_no_use_are_counted_and_the_rest_compared(cli: Cli, sweep: SweepFolder) -> None:
    run = RunFolder(sorted(path.parent for path in sweep.root.glob("*/metrics.json"))[0])
    sae = load_sae(run.sae)
    with torch.no_grad():
        sae.W_dec[:2] = 0
    save_sae(sae, run.sae, metadata={})
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    assert f"{run.root.name}: features left out of comparisons: 2 all zero" in result.err


def test_an_sae_without_features_is_left_out_and_the_others_compared(cli: Cli, sweep: SweepFolder) -> None:
    run = RunFolder(sorted(path.parent for path in sweep.root.glob("*/metrics.json"))[0])
    sae = load_sae(run.sae)
    with torch.no_grad():
        sae.W_dec.zero_()
    save_sae(sae, run.sae, metadata={})
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    assert f"{run.root.name}: none of its features can be followed: 96 all zero" in result.err
    runs = json.loads((sweep.families / "runs.json").read_text())["runs"]
    assert len(runs) == 5
    assert run.root.name not in runs


def test_neurons_are_compared_where_the_sizes_are_equal(cli: Cli, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, dictionary=[4, 8], seed=[1, 2])
    result = cli("task=match", "sweep=planted", "matching.side=neurons", *OWN)
    assert result.code == 0, result.err
    by_key = read_csv(sweep.matching / "measures_by_key.csv")
    assert {row["key"] for row in by_key} == {"seed"}
    assert {row["n"] for row in by_key} == {"48"}  # 24 neurons, two pairs


def test_two_saes_are_compared_by_every_measure(cli: Cli, sweep: SweepFolder) -> None:
    a, b = (str(path.parent) for path in sorted(sweep.root.glob("*/metrics.json"))[:2])
    result = cli("task=match", f"a={a}", f"b={b}/sae", *OWN)
    assert result.code == 0, result.err
    for name in MEASURES:
        assert f"\n{name} " in result.out
    (folder,) = Path("multirun/matched").iterdir()
    assert folder.name == f"{Path(a).name}__{Path(b).name}"
    matches = pq.read_table(folder / "matches.parquet").to_pylist()
    first = next(row for row in matches if row["sae"] == "a" and row["feature"] == 0)
    assert first["nearest"][0] == 0
    assert first["cosines"][0] == pytest.approx(1)
    assert first["mutual"]
    assert len(first["nearest"]) == 4
    assert {row["sae"] for row in matches} == {"a", "b"}


def test_an_sae_of_another_width_is_refused_with_the_reason(
    cli: Cli, sweep: SweepFolder, tmp_path: Path
) -> None:
    run = str(next(sweep.root.glob("*/metrics.json")).parent)
    other = build_sae(load_sae(Path(run) / "sae").architecture, 12, 30, seed=0, numerics="modern")
    save_sae(other, tmp_path / "wide" / "sae", metadata={})
    result = cli("task=match", f"a={run}", f"b={tmp_path / 'wide'}", *OWN)
    assert result.code == 1
    assert "a reads residuals of width 24 and b of 12: only SAEs of one residual width" in result.err


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["a=x"], 2, "a=x is compared with another SAE: give b too"),
        (["a=x", "b= "], 2, "b: name a folder"),
        (["a=multirun/planted", "b=multirun/planted"], 1, "is a sweep: name one of its runs as a"),
        (["a=./nowhere", "b=./nowhere"], 1, "no SAE in nowhere: there is no such folder"),
        (
            ["sweep=planted", "matching.nulls=[chance]"],
            2,
            "matching.nulls=chance: not one of random, rotated",
        ),
        (["sweep=planted", "matching.nulls=[tokens]"], 2, "tokens needs matching.tokens"),
        (["sweep=planted", "matching.matrix=w_dec"], 2, "matching.matrix=w_dec: not one of decoder, encoder"),
    ],
)
def test_wrong_words_are_one_clear_line(
    cli: Cli, sweep: SweepFolder, words: list[str], code: int, error: str
) -> None:
    result = cli("task=match", *words, *OWN)
    assert (result.code, len(result.err.strip().splitlines())) == (code, 1), result.err
    assert error in result.err


def test_random_families_of_each_kind_are_shown_with_their_contexts(cli: Cli, sweep: SweepFolder) -> None:
    for path in sorted(sweep.root.glob("*/metrics.json"))[:4]:
        write_analysis(RunFolder(path.parent))
    result = cli("task=match", "sweep=planted", *OWN)
    assert result.code == 0, result.err
    rows = pq.read_table(sweep.families / "examples.parquet").to_pylist()
    assert {row["kind"] for row in rows} >= {"universal", "only dataset library_docs", "only seed 1"}
    assert len({row["family"] for row in rows if row["kind"] == "universal"}) == 10
    assert (rows[0]["before"], rows[0]["token"], rows[0]["after"]) == (
        "<b>",
        f"t{rows[0]['feature']}",
        "\x1b|",
    )
    page = (sweep.families / "examples.md").read_text()
    assert f"2.00 \\<b\\>«t{rows[0]['feature']}»\\\\x1b\\|" in page


def write_analysis(run: RunFolder) -> None:
    """A context of each feature: `<b>`, its own token, an escape character and a bar."""
    metadata = {"run_id": run.root.name}
    write_parquet(
        run.features / "firing.parquet", pyarrow.table({"feature": [0]}).replace_schema_metadata(metadata)
    )
    contexts = pyarrow.table(
        {
            "feature": list(range(96)),
            "kind": ["top"] * 96,
            "rank": [0] * 96,
            "at": [1] * 96,
            "activation": [2.0] * 96,
            "tokens": [[96, feature, 97] for feature in range(96)],
        }
    )
    write_parquet(run.features / "contexts.parquet", contexts.replace_schema_metadata(metadata))
    strings = [*(f"t{feature}" for feature in range(96)), "<b>", "\x1b|"]
    tokens = pyarrow.table({"token": list(range(98)), "string": strings})
    write_parquet(run.features / "tokens.parquet", tokens.replace_schema_metadata(metadata))
