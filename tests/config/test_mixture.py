from typing import Any

import pytest

from sae_sweep.config import (
    ConfigError,
    DatasetConfig,
    DomainDataset,
    EmbeddedDataset,
    FaithfulDataset,
    FilesDataset,
    HubDataset,
    MixDataset,
    RunConfig,
    SyntheticDataset,
    TopKConfig,
    run_from_dict,
)
from sae_sweep.config.mixture import mixture_label, sampled_texts

HUB = HubDataset(name="owt", path="a/b", revision="main", files="*.parquet")


def _mix(weights: dict[str, Any], **parts: DatasetConfig) -> MixDataset:
    return MixDataset(weights=weights, parts=parts or {name: EmbeddedDataset(name=name) for name in weights})


@pytest.mark.parametrize(
    ("mix", "problem"),
    [
        (_mix({}), "dataset=mix needs weights: dataset.weights={stdlib_docs:0.75,stdlib_code:0.25}"),
        (_mix({"a": 0.5, "b": 0.4}), "dataset.weights sum to 0.9 (a-0.5-b-0.4): they must sum to 1"),
        (_mix({"a": 1.5}), "dataset.weights.a=1.5: must be between 0 and 1"),
        (_mix({"a": float("nan")}), "dataset.weights.a=nan: must be between 0 and 1"),
        (_mix({"a": 1}, a=SyntheticDataset()), "a SyntheticDataset cannot be part of a mixture"),
        (_mix({"a": 1}, a=_mix({"b": 1})), "a MixDataset cannot be part of a mixture"),
        (_mix({"a": 1}, a=HubDataset()), "dataset.weights.a: dataset.path is empty"),
        (_mix({"a": 1}, b=HUB), "dataset.parts lacks a"),
    ],
)
def test_a_wrong_mixture_is_one_line(mix: MixDataset, problem: str) -> None:
    assert any(problem in line for line in mix.problems())
    with pytest.raises(ConfigError):
        RunConfig(dataset=mix)


def test_a_mixture_comes_back_from_a_file_with_its_parts() -> None:
    mix = _mix({"docs": 0.25, "owt": 0.75}, docs=EmbeddedDataset(), owt=HUB)
    config = RunConfig(dataset=mix, architecture=TopKConfig())
    assert run_from_dict(config.as_dict()) == config
    assert len({mix, config.dataset, _mix({"a": 1})}) == 2
    damaged = config.as_dict()
    damaged["dataset"]["parts"]["owt"]["kind"] = "Nothing"
    with pytest.raises(ConfigError, match=r"dataset\.parts\.owt\.kind=Nothing: not one of"):
        run_from_dict(damaged)


def test_a_mixture_needs_the_hub_if_a_part_with_a_share_does() -> None:
    parts = {"docs": EmbeddedDataset(), "owt": HUB}
    assert _mix({"docs": 0.5, "owt": 0.5}, **parts).on_hub
    assert not _mix({"docs": 1, "owt": 0}, **parts).on_hub


def test_a_label_says_what_is_mixed() -> None:
    assert mixture_label({"owt": 0.75, "pile": 0.25}) == "owt-0.75-pile-0.25"
    assert mixture_label({"owt": 0, "pile": 1}) == "pile"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"keywords": []}, "dataset=domain needs dataset.keywords=[WORD,WORD]"),
        ({"keywords": ["?", "a"]}, "they hold no word of two letters or more"),
        ({"keywords": [], "seeds": " "}, "or dataset.seeds=FOLDER of examples"),
        ({"seeds": "examples"}, "dataset.keywords and dataset.seeds: give one of them"),
        ({"encoder": ""}, "dataset.encoder is empty: name one, or write null"),
        ({"of": ""}, "dataset=domain needs dataset.of: the name of a dataset to select from"),
        ({"source": None}, "dataset.source lacks docs"),
        ({"source": HUB}, "dataset.of=docs: a selection reads the whole text, and this one is on the hub"),
        ({"source": SyntheticDataset()}, "dataset.of=docs: nothing can be selected from a SyntheticDataset"),
        ({"source": FilesDataset()}, "dataset.of=docs: dataset.path is empty"),
        ({"documents": 0}, "dataset.documents=0: must be at least 1"),
    ],
)
def test_a_wrong_domain_is_one_line(keys: dict[str, Any], problem: str) -> None:
    domain = DomainDataset(**{"of": "docs", "keywords": ["await"], "source": EmbeddedDataset(), **keys})
    assert any(problem in line for line in domain.problems())


def test_a_domain_comes_back_from_a_file_and_can_be_mixed() -> None:
    domain = DomainDataset(of="docs", keywords=["await", "async"], source=EmbeddedDataset())
    config = RunConfig(dataset=domain, architecture=TopKConfig())
    assert run_from_dict(config.as_dict()) == config
    mixed = RunConfig(dataset=_mix({"a": 0.5, "b": 0.5}, a=domain, b=HUB), architecture=TopKConfig())
    assert run_from_dict(mixed.as_dict()) == mixed
    assert len({domain, config.dataset}) == 1


def test_texts_to_sample_are_those_that_a_dataset_is_made_of() -> None:
    own, other = FaithfulDataset(path="lm"), FaithfulDataset(path="lm", seed=7)
    domain = DomainDataset(of="own", keywords=["fox"], source=own)
    docs = EmbeddedDataset()
    assert sampled_texts(own) == sampled_texts(domain) == [own]
    assert sampled_texts(_mix({"a": 0.5, "b": 0.5}, a=own, b=other)) == [own, other]
    assert sampled_texts(_mix({"a": 0.5, "b": 0.5}, a=domain, b=docs)) == [own]
    assert sampled_texts(_mix({"a": 0, "b": 1}, a=own, b=docs)) == sampled_texts(docs) == []
