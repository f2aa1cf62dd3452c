"""What `auto` dtypes become, before the run id is made."""

from dataclasses import replace

import pytest

from sae_sweep.activations import device
from sae_sweep.config import (
    ActivationsConfig,
    InitConfig,
    LauncherConfig,
    ModelConfig,
    RunConfig,
    SlurmConfig,
    TopKConfig,
)
from sae_sweep.plan.resolve import resolve_dtypes, resolve_normalisation

RUN = RunConfig(architecture=TopKConfig(), device="cpu")
HERE = LauncherConfig()


def dtypes(run: RunConfig, launcher: LauncherConfig = HERE) -> tuple[str, str]:
    resolved = resolve_dtypes(run, launcher)
    return resolved.model.dtype, resolved.activations.dtype


def test_a_run_normalises_as_the_sae_that_it_starts_from() -> None:
    asked: list[str] = []

    def of_start(path: str) -> str:
        asked.append(path)
        return "centred"

    tuned = replace(RUN, init=InitConfig(sae="there"))
    assert resolve_normalisation(RUN, of_start) == replace(RUN, normalisation="layer_norm")
    assert resolve_normalisation(tuned, of_start) == replace(tuned, normalisation="centred")
    typed = replace(tuned, normalisation="none")
    assert resolve_normalisation(typed, of_start) is typed
    assert asked == ["there"]
    assert resolve_normalisation(RUN, of_start).run_id({}) == RUN.run_id({})


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_this_machine_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str
) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda _: fast)
    assert dtypes(RUN) == (dtype, dtype)
    assert resolve_dtypes(RUN, HERE).run_id({}) == replace(
        RUN, model=ModelConfig(dtype=dtype), activations=ActivationsConfig(dtype=dtype)
    ).run_id({})  # whoever types it trains the same run


def test_the_study_computes_in_float32_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda _: True)
    assert dtypes(replace(RUN, numerics="study")) == ("float32", "float32")


def test_what_was_typed_stays() -> None:
    typed = replace(RUN, model=ModelConfig(dtype="float16"))
    assert dtypes(typed) == ("float16", "float16")
    assert dtypes(replace(typed, activations=ActivationsConfig(dtype="float32"))) == ("float16", "float32")


@pytest.mark.parametrize(
    ("gpus", "run_device", "dtype"),
    [(1, "auto", "bfloat16"), (1, "cuda", "bfloat16"), (1, "cpu", "float32"), (0, "auto", "float32")],
)
def test_on_slurm_the_jobs_gpus_decide_and_not_this_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, run_device: str, dtype: str
) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda _: 1 / 0)
    launcher = LauncherConfig(kind="slurm", slurm=SlurmConfig(gpus=gpus))
    assert dtypes(replace(RUN, device=run_device), launcher)[0] == dtype
