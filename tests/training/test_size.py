"""A run that cannot exist on this machine fails in one line, before it fills the memory; the others train."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_sweep.config import ActivationsConfig, ConfigError, TopKConfig
from sae_sweep.training import size
from tests.training.fakes import D_IN, make_config, make_member
from tests.training.helpers import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"dictionary": 100_000_000},
            r"dictionary=100000000 \(d_sae=\d+\) needs \d+\.\d GiB, and activations",
        ),
        ({"activations": ActivationsConfig(buffer_tokens=10**13)}, "buffer_tokens=10000000000000 with batch"),
        ({"batch": 2**31 - 1, "tokens": 2**40}, r"with batch=2147483647 \d+\.\d GiB, but cpu has 8\.0 GiB"),
        ({"dictionary": 2**31 - 1}, "must be at most 2147483647"),
        ({"architecture": TopKConfig(k=10**6)}, r"k=1000000 is above d_sae=\d+: lower k"),
    ],
)
def test_a_run_beyond_all_memory_is_refused(
    values: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "total_bytes", lambda device: 8 * 2**30)
    config = dataclasses.replace(make_config(), **values)
    with pytest.raises(ConfigError, match=line):
        size.refuse_impossible(config, D_IN, CPU)
    size.refuse_impossible(make_config(), D_IN, CPU)


def test_it_fails_alone(tmp_path: Path) -> None:
    small, large = (
        make_member(tmp_path, "small", make_config()),
        make_member(tmp_path, "large", dataclasses.replace(make_config(), dictionary=100_000_000)),
    )
    outcomes = train([small, large])
    assert [outcome.failed is None for outcome in outcomes] == [True, False]
    assert "lower them" in str(outcomes[1].failed)


def test_the_machine_and_its_container_limit_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = size.total_bytes(CPU)
    (tmp_path / "own").write_text("0::/inner\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text("4096\n")
    monkeypatch.setattr(size, "_CGROUP", tmp_path)
    monkeypatch.setattr(size, "_OWN_CGROUP", tmp_path / "own")
    assert size.total_bytes(CPU) == 4096 < whole
