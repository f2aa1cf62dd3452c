"""Words that a shell and Hydra take as they were meant."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sae_sweep.config.pasted import override, pasted, shown_path

VALUES = [
    "paper",
    "/data/a/b.c",
    "a b",
    "2026_11_26",
    "1e5",
    "null",
    "True",
    "it's",
    'say "no"',
    'back\\slash "q" \\',
    "~home",
    "a=b,c",
    "$HOME `date`",
    "Größe 中",
    "[x]{y}(z)",
    "a;b&c|d>e",
    "-dash",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_through_shell_and_hydra(value: str) -> None:
    (word,) = shlex.split(override("sweep", value))
    (parsed,) = OverridesParser.create().parse_overrides([word])
    found = parsed.value()
    assert (found if isinstance(found, str) else found.text) == value


def test_what_needs_no_quotes_has_none() -> None:
    assert override("sweep", "paper-mini") == "sweep=paper-mini"
    assert override("paths.output", Path("/a/b")) == "paths.output=/a/b"
    assert override("paths.output", "/a b") == "'paths.output=\"/a b\"'"


def test_paths_are_quoted_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a b" / "c.png") == "'a b/c.png'"
    assert shown_path(Path("c.png")) == "c.png"
    assert shown_path(Path("/else where/c.png")) == "'/else where/c.png'"
    assert "\x1b" not in pasted("a\x1b[31m")
