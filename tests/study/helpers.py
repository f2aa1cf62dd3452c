"""Hand-made sweep folders on the study's grid, and reading of their tables."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet

from sae_sweep.config import ARCHITECTURES, EmbeddedDataset, InitConfig, ModelConfig, RunConfig
from sae_sweep.saes import build_sae, save_sae
from sae_sweep.store import RunFolder, write_json
from sae_sweep.study.published import RunFacts, published
from tests.study.study_runs import D_IN, decoder_of

STAND_INS = {"owt": "library_docs", "tinystories": "stdlib_docs"}
SCALE = 6.0
BASE = RunFacts("topk", 16, 16, "owt", 8, 49)


def facts_of_table1() -> list[RunFacts]:
    return [facts for facts in published().saes if facts.layer == 8]


def config_of(facts: RunFacts, *, shared: bool = True) -> RunConfig:
    jumprelu = facts.architecture == "jumprelu"
    sparsity: dict[str, Any] = (
        {"l0_coefficient": SCALE * facts.sparsity} if jumprelu else {"k": int(facts.sparsity)}
    )
    return RunConfig(
        model=ModelConfig("bundled:gpt2-pico"),
        dataset=EmbeddedDataset(name=STAND_INS.get(facts.dataset, facts.dataset)),
        architecture=ARCHITECTURES[facts.architecture](**sparsity),
        dictionary=facts.dictionary,
        layer=facts.layer,
        seed=facts.seed,
        tokens=100_000,
        init=InitConfig(shared=shared),
    )


def write_run(folder: RunFolder, facts: RunFacts, config: RunConfig) -> None:
    sae = build_sae(config.architecture, D_IN, facts.dictionary * D_IN, seed=1, numerics="modern")
    with torch.no_grad():
        sae.W_dec.copy_(decoder_of(facts))
    save_sae(sae, folder.sae, metadata={})
    weak = facts.seed == 42 and facts.dictionary == 8
    variance = 0.41 if weak else 0.7
    metrics = {"init_match": 0.02, "init_match_threshold": 0.7, "explained_variance": variance}
    write_json(folder.metrics, metrics)
    folder.features.mkdir()
    columns = {"density": 0.01, "mean_activation": 1.5}
    table = pyarrow.table(
        {name: torch.full((sae.d_sae,), value).double().numpy() for name, value in columns.items()}
    )
    parquet.write_table(table, folder.features / "statistics.parquet")
    write_json(folder.status, {"state": "done", "run_id": folder.root.name, "tokens": config.tokens})


def write_sweep(root: Path, facts: Sequence[RunFacts], *, starts: Sequence[bool] = (True,)) -> list[str]:
    planned = []
    for shared in starts:
        for one in facts:
            config = config_of(one, shared=shared)
            name = config.base_name() + ("" if shared else "_own")
            write_run(RunFolder(root / name), one, config)
            planned.append({"name": name, "id": name, "config": config.as_dict()})
    study = {"datasets": STAND_INS, "l0_scale": SCALE}
    write_json(root / "plan.json", {"sweep": root.name, "study": study, "runs": planned})
    return [run["name"] for run in planned]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
