"""A run's `config.yaml` is compared with the plan's copy, which has no checksum in old sweeps."""

import dataclasses
from pathlib import Path

import pytest

from sae_sweep.analysis.pairs import varied_keys
from sae_sweep.config import (
    EvaluationConfig,
    FilesDataset,
    InitConfig,
    OptimizerConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.config.swept import swept_keys
from sae_sweep.store import RunFolder
from sae_sweep.store.config_file import write_config
from sae_sweep.tasks.finished import _config, labelled

CONFIG = RunConfig(architecture=TopKConfig(k=16))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    write_config(RunFolder(tmp_path), CONFIG)
    text = (tmp_path / "config.yaml").read_text()
    text = text.split("\n", 1)[1].removesuffix("# end of the config\n")
    (tmp_path / "config.yaml").write_text(text)  # as version 0.1.0 wrote it
    return RunFolder(tmp_path)


def test_a_config_without_a_checksum_is_read_if_the_plan_says_the_same(folder: RunFolder) -> None:
    evaluated_otherwise = dataclasses.replace(CONFIG, evaluation=EvaluationConfig(tokens=17))
    assert _config(folder, evaluated_otherwise) == CONFIG


def test_another_digit_or_a_lost_key_is_refused_naming_the_keys(folder: RunFolder) -> None:
    text = folder.config.read_text()
    folder.config.write_text(text.replace("k: 16", "k: 17"))
    with pytest.raises(
        SaeSweepError, match=r"config\.yaml: it differs from plan\.json in architecture\.k; remove"
    ):
        _config(folder, CONFIG)
    folder.config.write_text(text.replace("seed: 49\n", "", 1))
    with pytest.raises(SaeSweepError, match=r"config\.yaml: it differs from plan\.json in seed; remove"):
        _config(folder, dataclasses.replace(CONFIG, seed=1))


def _files(label: str, seed: int) -> RunConfig:
    return dataclasses.replace(CONFIG, dataset=FilesDataset(name=label, path=f"{label}-texts"), seed=seed)


def test_another_label_of_the_same_text_is_no_difference() -> None:
    configs = [_files("aaa", 1), _files("bbb", 2)]
    contents = [{"corpus": "c1", "model": "m"}, {"corpus": "c1", "model": "m"}]
    assert swept_keys(labelled(configs, contents)) == [{"seed": 1}, {"seed": 2}]


def test_two_texts_or_models_of_one_label_are_a_difference() -> None:
    configs = [_files("aaa", 1), _files("aaa", 1)]
    for key in ("corpus", "model"):
        contents = [{"corpus": "c", "model": "m", key: "1"}, {"corpus": "c", "model": "m", key: "2"}]
        a, b = swept_keys(labelled(configs, contents))
        assert a.keys() == b.keys() == {"dataset" if key == "corpus" else "model"}
        assert a != b


def test_runs_differ_in_what_only_one_of_them_has_set_and_in_nothing_that_follows() -> None:
    """`varied_keys` leaves out keys that only one of two runs has, so that both must have these."""
    plain, *others = [
        dataclasses.replace(
            CONFIG, data_seed=seed, optimizer=OptimizerConfig(tilt=tilt), init=InitConfig(sae=sae)
        )
        for seed, tilt, sae in ((0, None, None), (1, 10, None), (1, None, "general"))
    ]
    found = [swept_keys([plain, other]) for other in others]
    assert found[0] == [{"data_seed": 0, "optimizer.tilt": None}, {"data_seed": 1, "optimizer.tilt": 10}]
    assert [varied_keys(*keys) for keys in found] == [
        *(("data_seed", "optimizer.tilt"), ("data_seed", "init.sae"))
    ]
    shuffled = [dataclasses.replace(CONFIG, shuffle_seed=seed) for seed in (None, 0, 5)]
    assert swept_keys(shuffled[:2]) == [{}, {}]
    assert swept_keys(shuffled[1:]) == [{"shuffle_seed": None}, {"shuffle_seed": 5}]


def test_an_sae_to_start_from_is_its_content_and_not_its_path() -> None:
    configs = [dataclasses.replace(CONFIG, init=InitConfig(sae=path)) for path in ("a/general", "b/other")]
    same, another = ([{"start": "1"}, {"start": content}] for content in "12")
    assert swept_keys(labelled(configs, same)) == [{}, {}]
    assert swept_keys(labelled(configs, another)) == [{"init.sae": "general"}, {"init.sae": "other"}]


def test_labels_stand_for_contents_that_are_not_known() -> None:
    configs = [_files("aaa", 1), _files("bbb", 1)]
    assert swept_keys(labelled(configs, [{}, {}])) == [{"dataset": "aaa"}, {"dataset": "bbb"}]


def test_a_key_that_some_runs_leave_at_null_is_swept() -> None:
    tilted = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, tilt=10.0))
    assert swept_keys([CONFIG, tilted]) == [{"optimizer.tilt": None}, {"optimizer.tilt": 10.0}]
    started = dataclasses.replace(CONFIG, init=dataclasses.replace(CONFIG.init, sae="somewhere"))
    assert swept_keys([CONFIG, started]) == [{"init.sae": None}, {"init.sae": "somewhere"}]
