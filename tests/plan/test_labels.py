"""Different texts and models of one label are told apart; what is the same stays as it is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.config import (
    CommandConfig,
    DatasetConfig,
    FilesDataset,
    HubDataset,
    ModelConfig,
    PathsConfig,
    RunConfig,
    TopKConfig,
    plain_name,
)
from sae_sweep.plan import Plan, Request, WantedRun, make_plan
from sae_sweep.plan.labels import tell_apart


def run(model: ModelConfig | None = None, dataset: DatasetConfig | None = None, seed: int = 49) -> RunConfig:
    return RunConfig(
        model=model or ModelConfig(),
        dataset=dataset or FilesDataset(path="x"),
        architecture=TopKConfig(),
        seed=seed,
    )


def told(*runs: RunConfig) -> list[tuple[str, str]]:
    prints = [
        {
            "corpus": f"{one.dataset.path}{getattr(one.dataset, 'revision', '')}",  # type: ignore[attr-defined]
            "model": f"{one.model.path}{one.model.revision}",
        }
        for one in runs
    ]
    named = tell_apart(list(zip(runs, prints, strict=True)))
    return [(one.model.label, one.dataset.name) for one in named]


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a.jsonl", "b.jsonl"], ["files-a", "files-b"]),
        (["/x/a.jsonl.gz", "/y/a.jsonl.gz"], ["files-x-a", "files-y-a"]),
        (["/x/t", "/x/u", "/z/t"], ["files-x-t", "files-x-u", "files-z-t"]),
        (["2024/*.txt", "2025/*.txt"], ["files-2024", "files-2025"]),
        (["my files", "other files"], ["my-files", "other-files"]),
        (["a.jsonl", "a.jsonl"], ["files", "files"]),
    ],
)
def test_texts_are_told_apart_by_what_differs_in_their_paths(paths: list[str], labels: list[str]) -> None:
    assert [name for _, name in told(*(run(dataset=FilesDataset(path=path)) for path in paths))] == labels


def test_models_of_one_folder_name_are_called_by_the_folders_above() -> None:
    found = told(*(run(ModelConfig(path=path)) for path in ("/a/lm", "/b/lm", "/c/other", "gpt2")))
    assert [label for label, _ in found] == ["a-lm", "b-lm", "other", "gpt2-small"]


def test_a_label_does_not_begin_as_a_hidden_folder_does() -> None:
    found = told(*(run(ModelConfig(path=path)) for path in ("../lm", "../../a/lm", ".x/lm")))
    assert [label for label, _ in found] == ["lm", "a-lm", "x-lm"]


def test_revisions_of_one_model_or_text_are_told_apart() -> None:
    models = told(run(), run(ModelConfig(revision="0123456789abcdef")))
    assert [label for label, _ in models] == ["gpt2-small", "gpt2-small-0123456789ab"]
    hub = [HubDataset(name="owt", path="a/b", revision=one, files="*") for one in ("main", "refs/pr/1")]
    assert [name for _, name in told(*(run(dataset=one) for one in hub))] == ["owt-main", "owt-refs-pr-1"]


def test_what_neither_path_nor_revision_tells_apart_is_told_by_its_content() -> None:
    one = run(dataset=FilesDataset(path="t", text_key="text"))
    other = run(dataset=FilesDataset(path="t", text_key="title"))
    found = tell_apart([(one, {"corpus": "0123456789"}), (other, {"corpus": "abcdef0123"})])
    labels = [config.dataset.name for config in found]
    assert labels[0] != labels[1]
    assert all(re.fullmatch(r"files-[0-9a-f]{6}", label) for label in labels)


def test_a_label_of_another_text_is_not_given_again() -> None:
    datasets = [FilesDataset(path="a"), FilesDataset(path="b"), FilesDataset(name="files-a", path="c")]
    labels = [name for _, name in told(*(run(dataset=one) for one in datasets))]
    assert len(set(labels)) == 3
    assert labels[2] == "files-a"


_paths = st.text(st.sampled_from("ab/.中*- "), min_size=1, max_size=8)


@given(st.lists(st.tuples(_paths, st.sampled_from(["files", "files-a"])), max_size=5))
def test_labels_stand_for_one_content_each_and_are_plain(texts: list[tuple[str, str]]) -> None:
    runs = [run(dataset=FilesDataset(path=path, name=name)) for path, name in texts]
    found = tell_apart([(one, {"corpus": one.dataset.path}) for one in runs])  # type: ignore[attr-defined]
    contents: dict[str, set[str]] = {}
    for (path, _), one in zip(texts, found, strict=True):
        contents.setdefault(one.dataset.name, set()).add(path)
        problems: list[str] = []
        plain_name(problems, "dataset.name", one.dataset.name)
        assert problems == []
    assert all(len(paths) == 1 for paths in contents.values())


def test_a_sweep_keeps_its_names_when_a_text_of_the_same_label_joins_it(tmp_path: Path) -> None:
    """And ids are those of the content, whatever the labels."""
    command = CommandConfig(sweep="s", paths=PathsConfig(output=str(tmp_path)))

    def planned(*paths: str) -> Plan:
        runs = [run(dataset=FilesDataset(path=path)) for path in paths]
        wanted = [WantedRun(one, one) for one in runs]
        return make_plan(
            Request(command, wanted), lambda one: {"corpus": getattr(one.dataset, "path", ""), "model": "m"}
        )

    first = planned("a")
    first.save()
    both = planned("a", "b")
    assert [one.name for one in first.runs] == ["gpt2-small_L8_files_topk_x16_k16_s49"]
    assert [one.name for one in both.runs] == [first.runs[0].name, "gpt2-small_L8_files-b_topk_x16_k16_s49"]
    assert both.runs[0].run_id == first.runs[0].run_id
    both.refuse_another()
    both.save()
    assert [one.name for one in planned("b", "a").runs] == [one.name for one in reversed(both.runs)]
