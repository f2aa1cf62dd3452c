"""Bounds of numeric keys: every field has some, and no value gets past them but those that can be trained."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

from sae_sweep.config import (
    ARCHITECTURES,
    ActivationsConfig,
    ConfigError,
    DomainDataset,
    EmbeddedDataset,
    EvaluationConfig,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    LauncherConfig,
    MatchingConfig,
    OptimizerConfig,
    PackingConfig,
    PlanConfig,
    RunConfig,
    SlurmConfig,
    SyntheticDataset,
    TopKConfig,
    TrackingConfig,
)
from sae_sweep.config.checks import NumericField, numeric_fields, shown
from sae_sweep.study.config import StudyConfig

RUN = RunConfig(architecture=TopKConfig(), dataset=EmbeddedDataset())
DATASET = {"path": "p", "revision": "r", "files": "f"}
PARTS: list[tuple[str, Any]] = [
    ("", RUN),
    *(("architecture.", cls()) for cls in ARCHITECTURES.values()),
    ("optimizer.", OptimizerConfig()),
    ("activations.", ActivationsConfig()),
    ("evaluation.", EvaluationConfig()),
    ("packing.", PackingConfig()),
    ("dataset.", HubDataset(**DATASET)),  # type: ignore[arg-type]
    ("dataset.", FilesDataset(path="p")),
    ("dataset.", FaithfulDataset(path="p")),
    ("dataset.", SyntheticDataset()),
    ("dataset.", DomainDataset(of="stdlib_docs", keywords=["word"], source=EmbeddedDataset())),
    ("matching.", MatchingConfig()),
    ("tracking.", TrackingConfig()),
    ("launcher.", LauncherConfig()),
    ("launcher.slurm.", SlurmConfig()),
    ("plan.", PlanConfig()),
    ("study.", StudyConfig()),
]
ODD = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.0,
    2**63,
    -(2**63),
    10**400,
    1e23,
    True,
    "5",
    "x" * 10_000,
    [],
    {},
)
"""Values that no key accepts, except that some floats may be large."""


def keys() -> Iterator[tuple[str, Any, str, NumericField]]:
    for prefix, part in PARTS:
        for name, field in numeric_fields(type(part)).items():
            yield prefix, part, name, field


def problems(part: Any, **values: Any) -> list[str]:
    """The lines that a part of a config says of changed values."""
    if isinstance(part, RunConfig):
        try:
            dataclasses.replace(part, **values)
        except ConfigError as error:
            return list(error.problems)
        return []
    changed = dataclasses.replace(part, **values)
    return changed.problems(None) if type(part) in ARCHITECTURES.values() else changed.problems()  # type: ignore[no-any-return]


def test_every_part_with_numbers_is_tried() -> None:
    """A new config class or numeric key cannot be forgotten: here, or by `number_problems`."""

    def classes(cls: type) -> Iterator[type]:
        yield cls
        for sub in cls.__subclasses__():
            yield from classes(sub)

    nested = {
        type(value)
        for _, part in PARTS
        for field in dataclasses.fields(part)
        if dataclasses.is_dataclass(value := getattr(part, field.name))
    }
    tried = {type(part) for _, part in PARTS}
    assert {cls for cls in nested if numeric_fields(cls)} <= tried
    assert {cls for cls in classes(type(RUN.dataset).__base__) if numeric_fields(cls)} <= tried  # type: ignore[arg-type]
    assert len(list(keys())) >= 50


@pytest.mark.parametrize(("prefix", "part", "name", "field"), list(keys()))
def test_no_odd_value_gets_past(prefix: str, part: Any, name: str, field: NumericField) -> None:
    for value in ODD:
        found = problems(part, **{name: value})
        if field.kind is float and value in (2**63, 1e23) and value <= field.bounds.most.value:
            continue
        assert found, f"{prefix}{name} accepts {value!r}"
        assert all("\n" not in line and len(line) < 250 for line in found)
        assert any(
            line.startswith((f"{prefix}{name}=", f"{name}=")) and shown(value) in line for line in found
        )
    if not field.optional:
        assert problems(part, **{name: None})


@pytest.mark.parametrize(("prefix", "part", "name", "field"), list(keys()))
def test_a_bound_is_allowed_and_its_neighbour_is_not(
    prefix: str, part: Any, name: str, field: NumericField
) -> None:
    for end, away in zip(field.bounds, (-math.inf, math.inf), strict=True):
        last = field.kind(end.value)
        over = last + int(math.copysign(1, away)) if field.kind is int else math.nextafter(last, away)
        lines = problems(part, **{name: over})
        assert any(line.endswith(f"must be {end.words}") for line in lines), (prefix, name, over, lines)
        kept = problems(part, **{name: last})
        assert not any(line.endswith(f"must be {end.words}") and "d_sae" not in line for line in kept)


def test_relations_are_said_beside_bounds() -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(
            RUN,
            layer=13,
            seed=-1,
            architecture=TopKConfig(k=99_999),
            optimizer=OptimizerConfig(beta1=math.nan),
        )
    assert list(caught.value.problems) == [
        "seed=-1: must be at least 0",
        "layer=13: gpt2-small has layers 0 to 11",
        "k=99999 is above d_sae=12288: lower k or raise dictionary",
        "optimizer.beta1=nan: must be a finite number",
    ]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"dictionary": 3_000_000}, "dictionary=3000000: d_sae=2304000000 must be at most 2147483647"),
        ({"dictionary": 1_000_000}, None),
        (
            {"dictionary": 1_000_000, "batch": 1_000_000, "tokens": 10**9},
            "batch=1000000 x d_sae=768000000 float32 latents are over 2^50 bytes: lower it",
        ),
        (
            {"packing": PackingConfig(max_document_tokens=1, bos_every_sequence=False)},
            "packing.max_document_tokens=1: must be at least 2",
        ),
        ({"packing": PackingConfig(max_document_tokens=1)}, None),
        ({"tokens": "many"}, "tokens=many: must be a whole number"),
        ({"batch": None}, "batch=null: must be a whole number"),
        ({"optimizer": OptimizerConfig(warmup_fraction=math.nan)}, "optimizer.warmup_fraction=nan"),
    ],
)
def test_sizes_that_cannot_exist_are_refused(values: dict[str, Any], line: str | None) -> None:
    found = problems(RUN, **values)
    assert len(found) == (line is not None), found
    assert line is None or found[0].startswith(line)


def test_sizes_are_checked_again_when_the_width_of_the_model_is_known() -> None:
    assert RUN.size_problems(16) == []
    assert RUN.size_problems(2**28)[0].startswith("dictionary=16: d_sae=4294967296 must be at most")
