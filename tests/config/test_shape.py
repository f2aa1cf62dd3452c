"""config.json of a model folder: a shape, or one line that says why there is none."""

import json
import os

import pytest

from sae_sweep.config import ModelConfig
from sae_sweep.config.shape import read_shape, shape_problem

GPT2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 300}


def written(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    return folder


def test_a_shape_is_read(tmp_path):
    folder = written(tmp_path, json.dumps({**GPT2, "n_inner": None}))
    assert read_shape(folder) == (3, 16, 12 * 16**2, 64, 300)
    assert shape_problem(folder) is None
    assert ModelConfig(path=str(folder)).problems() == []


def test_a_folder_without_one_and_a_repository_on_the_hub_are_no_problem(tmp_path):
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "org" / "model"):
        assert shape_problem(folder) is None
        assert read_shape(folder) is None
    (tmp_path / "model.gguf").write_bytes(b"")
    assert shape_problem(tmp_path / "model.gguf") is None


ABSURD = [0, -1, 10**9, 10**400, 1e9, 1.5, "3", True, [3], {"n": 3}]


@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "n_inner"])
def test_an_absurd_size_is_one_line(tmp_path, key, value):
    folder = written(tmp_path, json.dumps({**GPT2, key: value}))
    (problem,) = ModelConfig(path=str(folder)).problems()
    assert problem.startswith(f"model.path={folder}: {folder / 'config.json'} is damaged ({key}=")
    assert problem.endswith("): save or download the model again")
    assert "\n" not in problem
    assert len(problem) < 300 + 2 * len(str(folder))
    assert read_shape(folder) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "\xff",
        '{"n_layer": NaN}',
        '{"n_layer": Infinity}',
        '{"n_layer": 1' + "0" * 5000 + "}",
        '{"deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=range(9),
)
def test_what_is_no_config_is_one_line(tmp_path, text):
    folder = written(tmp_path, text)
    problem = shape_problem(folder)
    assert problem is not None
    assert problem.startswith(f"{folder / 'config.json'} is damaged (")
    assert "\n" not in problem
    assert read_shape(folder) is None


def test_a_huge_file_a_pipe_and_a_folder_are_not_read(tmp_path):
    file = written(tmp_path, "{}") / "config.json"
    os.truncate(file, 2**30)
    assert "1,073,741,824 bytes" in str(shape_problem(tmp_path))
    file.unlink()
    os.mkfifo(file)
    assert "it is not a file" in str(shape_problem(tmp_path))
    file.unlink()
    file.mkdir()
    assert "it is not a file" in str(shape_problem(tmp_path))
