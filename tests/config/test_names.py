"""Names from outside: none leads out of a folder, and all are shown rather than obeyed."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from sae_sweep.config import (
    CommandConfig,
    ConfigError,
    EmbeddedDataset,
    ModelConfig,
    RunConfig,
    escaped,
    escaped_lines,
    plain_name,
)
from sae_sweep.study.config import StudyCommand, StudyConfig

WRONG = [
    *(
        "",
        " ",
        ".",
        "..",
        "a/b",
        "../a",
        "/etc",
        "a\\b",
        ".hidden",
        "-rf",
        "--help",
        " a",
        "a ",
        "a\n",
        "a\x00b",
    ),
    *("a\x1b[2Jb", "a\u202eb", "a\u200bb", "a\u2028b", "a\udcffb", "a\xa0b", "a" * 121, "ü" * 61),
]
KEYS: dict[str, Callable[[str], Any]] = {
    "sweep": lambda name: CommandConfig(sweep=name),
    "experiment": lambda name: CommandConfig(experiment=name),
    "stream": lambda name: CommandConfig(stream=name),
    "study.paper": lambda name: StudyCommand(study=StudyConfig(paper=name)),
    "model.name": lambda name: RunConfig(model=ModelConfig(name=name)),
    "dataset.name": lambda name: RunConfig(dataset=EmbeddedDataset(name=name)),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_is_not_plain_is_one_line(key: str, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        KEYS[key](name)
    lines = [line for line in raised.value.problems if line.startswith(f"{key}={escaped(name)} ")]
    assert len(lines) == 1
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    "name", ["a", "2026_11_26", "gpt2-small.v2", "my sweep", "ünï中", "a" * 120, "a..b", "x=$1"]
)
def test_plain_names(name: str) -> None:
    for make in KEYS.values():
        make(name)
    problems: list[str] = []
    plain_name(problems, "sweep", name)
    plain_name(problems, "sweep", None)
    assert problems == []


def test_what_is_escaped_has_one_line_and_no_control_characters() -> None:
    for code in [*range(0x250), *range(0x2000, 0x2070), 0xFEFF, 0xD800, 0xDFFF, 0xE000, 0xE0001, 0x10FFFF]:
        shown = escaped(f"a{chr(code)}b")
        assert shown.isprintable()
        assert re.fullmatch(r"a(.|\\.+)b", shown)
    assert escaped("plain text, ü 中 R² …") == "plain text, ü 中 R² …"
    assert escaped_lines("a\r\n\x1bb\n") == "a\\r\n\\x1bb\n"
