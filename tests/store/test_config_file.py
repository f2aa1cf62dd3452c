"""`config.yaml`: plain YAML that is never believed if it is damaged."""

import dataclasses
import time
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_sweep.config import (
    ARCHITECTURES,
    FilesDataset,
    OptimizerConfig,
    RunConfig,
    SaeSweepError,
    TopKConfig,
)
from sae_sweep.store import RunFolder, read_config
from sae_sweep.store.config_file import write_config
from tests.store.damage import check_reader, damaged_bytes, outcome

CONFIG = RunConfig(architecture=TopKConfig())


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    write_config(RunFolder(tmp_path / "run"), CONFIG)
    return RunFolder(tmp_path / "run")


def without_checksum(folder: RunFolder) -> str:
    """Rewrite the file as version 0.1.0 wrote it."""
    text = folder.config.read_text().split("\n", 1)[1].removesuffix("# end of the config\n")
    folder.config.write_text(text)
    return text


@pytest.mark.parametrize(
    "config",
    [
        *(RunConfig(architecture=one()) for one in ARCHITECTURES.values()),
        dataclasses.replace(CONFIG, optimizer=OptimizerConfig(lr=1e-5, clip_norm=1.0), shuffle_seed=3),
        dataclasses.replace(CONFIG, dataset=FilesDataset(name="1e5", path="a: [b] # c ä")),
    ],
)
def test_a_config_comes_back(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder(tmp_path)
    write_config(folder, config)
    assert read_config(folder) == config
    without_checksum(folder)
    assert read_config(folder) == config


def test_it_is_yaml_that_anything_reads(folder: RunFolder) -> None:
    assert OmegaConf.to_container(OmegaConf.load(folder.config)) == CONFIG.as_dict()


def test_another_digit_is_refused_with_the_remedy(folder: RunFolder) -> None:
    folder.config.write_text(folder.config.read_text().replace("ultra_rare: 1.0e-05", "ultra_rare: 1.0e-04"))
    with pytest.raises(SaeSweepError, match=r"cannot read .*config\.yaml: its content .*; remove it"):
        read_config(folder)


def test_no_damage_is_believed(folder: RunFolder) -> None:
    check_reader(folder.config, lambda: read_config(folder))


def test_no_lost_lines_go_unnoticed(folder: RunFolder) -> None:
    whole = folder.config.read_bytes()
    lines = whole.splitlines(keepends=True)
    for start in range(len(lines)):
        for end in (start + 1, start + 9, len(lines)):
            folder.config.write_bytes(b"".join(lines[:start] + lines[end:]))
            assert outcome(folder.config, lambda: read_config(folder)) is None


def test_damage_without_a_checksum_is_read_or_refused(folder: RunFolder) -> None:
    whole = without_checksum(folder).encode()
    for changed in damaged_bytes(whole, 100):
        folder.config.write_bytes(changed)
        outcome(folder.config, lambda: read_config(folder))


def test_a_value_of_another_type_is_named(folder: RunFolder) -> None:
    keys = ("tokens", "shuffle_seed", "optimizer.lr", "architecture.kind", "dataset")
    plain = OmegaConf.create(CONFIG.as_dict())
    for key in keys:
        for value in ("abc", None, [], {}, True, 10**400, -1.5, "..", "\n"):
            changed = plain.copy()
            OmegaConf.update(changed, key, value, merge=False)
            folder.config.write_text(OmegaConf.to_yaml(changed))
            outcome(folder.config, lambda: read_config(folder))
    OmegaConf.update(plain, "tokens", "abc")
    folder.config.write_text(OmegaConf.to_yaml(plain))
    with pytest.raises(SaeSweepError, match=r"config\.yaml: tokens='abc': must be a whole number; remove"):
        read_config(folder)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "alias or a tag"),
        ("model: &m {path: gpt2}\ndataset: *m\n", "alias or a tag"),
        ("tokens: !!python/object/apply:os.system ['touch pwned']\n", "alias or a tag"),
        ("tokens: !!int '4'\n", "alias or a tag"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: 1\na: 2\n", "while constructing a mapping"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("- 1\n", "no mapping"),
        ("just text", "no mapping"),
        ("", "architecture=None: must be a mapping"),
        ("1", "no mapping"),
        ("tokens: ${oc.env:HOME}\n", "architecture=None: must be a mapping"),
        ("tokens: ${\n", ""),
        ("tokens: .inf\n", "architecture=None"),
        ("\x00", "special characters"),
    ],
)
def test_yaml_that_does_more_than_hold_values_is_refused_at_once(
    folder: RunFolder, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.root)
    folder.config.write_text(text)
    start = time.perf_counter()
    with pytest.raises(SaeSweepError, match=r"^cannot read .*config\.yaml: .*; remove it") as refused:
        read_config(folder)
    assert time.perf_counter() - start < 5
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]


def test_infinity_and_lost_keys_are_refused(folder: RunFolder) -> None:
    text = without_checksum(folder)
    folder.config.write_text(text.replace("lr: 0.0003", "lr: .inf"))
    with pytest.raises(SaeSweepError, match=r"optimizer\.lr=inf: must be a finite number"):
        read_config(folder)
    folder.config.write_text(text[text.index("dictionary:") :])
    with pytest.raises(SaeSweepError, match=r"architecture=None: must be a mapping"):
        read_config(folder)


def test_problems_of_several_keys_are_one_line(folder: RunFolder) -> None:
    config = dataclasses.replace(CONFIG, layer=3).as_dict()
    config["site"], config["device"] = "nowhere\n", "abacus"
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    with pytest.raises(SaeSweepError) as refused:
        read_config(folder)
    line = str(refused.value)
    assert line.isprintable()
    assert "nowhere" in line
    assert "abacus" in line
