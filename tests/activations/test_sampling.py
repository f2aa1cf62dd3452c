"""Text that a model samples: its distribution, its documents, and what it cannot be sampled from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoTokenizer, GPT2LMHeadModel

from sae_sweep.activations import LanguageModel, load_language_model, sampling
from sae_sweep.activations.sampling import check_cache, draw, is_sampled, sample, sample_text
from sae_sweep.config import FaithfulDataset, ModelConfig, SaeSweepError
from sae_sweep.text import fingerprint, open_text
from sae_sweep.text.faithful import FaithfulFiles
from tests.activations.conftest import save_gpt2
from tests.activations.families import save_family


def dataset(model: Path, **keys: int) -> FaithfulDataset:
    return replace(
        FaithfulDataset(path=str(model), tokens=400, block=16, longest=24, held_out_every=4), **keys
    )


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model whose next tokens differ in probability and depend on all before, unlike at random."""
    folder = save_gpt2(tmp_path_factory.mktemp("models") / "sharp", n_positions=16)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wte.weight *= 20
        for block in model.transformer.h:
            block.attn.c_attn.weight *= 20
            block.attn.c_proj.weight *= 20
    model.save_pretrained(folder)
    return load_language_model(ModelConfig(path=str(folder), dtype="float32"), torch.device("cpu"))


def exact(lm: LanguageModel, prefixes: list[list[int]]) -> torch.Tensor:
    """Probabilities of the next token after each prefix, from whole passes without a cache."""
    with torch.no_grad():
        return lm._forward.logits(torch.tensor(prefixes), None)[:, -1].double().softmax(-1)


def assert_drawn_from(counts: torch.Tensor, expected: torch.Tensor) -> None:
    """A chi-square test, the rare tokens together."""
    frequent = expected * counts.sum() >= 5
    seen = [*counts[frequent].tolist(), counts[~frequent].sum().item()]
    wanted = [*expected[frequent].tolist(), expected[~frequent].sum().item()]
    assert len(seen) > 10
    total = sum(seen)
    assert chisquare(seen, [share * total / sum(wanted) for share in wanted]).pvalue > 1e-3


def test_the_first_and_the_later_tokens_have_the_models_exact_probabilities(sharp: LanguageModel) -> None:
    end = sharp.tokenizer.eot_id
    documents = [[*one.tokens, *[end] * one.ended] for one in sample(sharp, 4000, 16, (1, 0))]
    first = torch.bincount(torch.tensor([ids[0] for ids in documents]), minlength=300)
    of_first = exact(sharp, [[end]])[0]
    assert_drawn_from(first, of_first)
    second = torch.bincount(torch.tensor([ids[1] for ids in documents if len(ids) > 1]), minlength=300)
    others = [token for token in range(300) if token != end]
    of_second = of_first[others] @ exact(sharp, [[end, token] for token in others])
    assert second.sum() > 500
    assert_drawn_from(second, of_second / of_second.sum())


def naive(lm: LanguageModel, number: int, count: int, longest: int, seed: tuple[int, int]) -> list[int]:
    """One document of a block, token by token from whole passes."""
    generator = torch.Generator().manual_seed((seed[0] << 31) + seed[1])
    uniform = torch.rand(count, longest - 1, generator=generator, dtype=torch.float64)[number]
    ids = [lm.tokenizer.bos_id]
    for u in uniform:
        sums = exact(lm, [ids])[0].cumsum(0)
        ids.append(int((sums <= u * sums[-1]).sum()))
        if ids[-1] == lm.tokenizer.eot_id:
            return ids[1:-1]
    return ids[1:]


def test_a_block_equals_documents_sampled_one_by_one_from_whole_passes(sharp: LanguageModel) -> None:
    found = sample(sharp, 60, 16, (5, 2))
    assert 15 < sum(one.ended for one in found) < 60  # some leave the batch before the others end
    for number in range(0, 60, 6):
        assert found[number].tokens == naive(sharp, number, 60, 16, (5, 2))


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.2, 0.0, 0.3, 0.5, 0.0]]).log()
    uniform = torch.tensor([0, 0.19, 0.21, 0.49, 0.51, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits.expand(6, -1), uniform).tolist()
    assert drawn == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("fast", [True, False])
def test_the_cache_gives_the_probabilities_of_whole_passes(model_folder: Path, fast: bool) -> None:
    lm = load_language_model(ModelConfig(str(model_folder), dtype="float32"), torch.device("cpu"), fast=fast)
    check_cache(lm, torch.tensor([[0, 5, 7, 11, 2, 9]]))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_the_cache_of_other_families_does_too(tmp_path: Path, family: str) -> None:
    folder = save_family(tmp_path / family, family)
    lm = load_language_model(ModelConfig(str(folder), dtype="float32"), torch.device("cpu"))
    check_cache(lm, torch.tensor([[0, *range(10, 24)]]))


def test_a_cache_that_moves_probabilities_is_refused(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = lm.next_logits

    def wrong(tokens: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        logits, cache = right(tokens, cache)
        return logits * 1.2, cache

    monkeypatch.setattr(lm, "next_logits", wrong)
    with pytest.raises(SaeSweepError, match="changes the probability of a token by"):
        check_cache(lm, torch.tensor([[0, 5, 7, 11, 2, 9]]))


def test_documents_end_where_the_model_ends_them_or_at_the_context(sharp: LanguageModel) -> None:
    documents = sample(sharp, 300, 1000, (3, 0))
    assert {len(one.tokens) for one in documents if not one.ended} == {15}  # a context of 16, without BOS
    assert any(one.ended for one in documents)
    assert all(sharp.tokenizer.eot_id not in one.tokens for one in documents)
    assert all(len(one.tokens) <= 4 for one in sample(sharp, 50, 5, (3, 0)))


def test_a_stopped_text_goes_on_at_its_next_block_and_is_the_same(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataset(model_folder)
    whole = sample_text(config, tmp_path / "whole", "cpu")
    assert whole.tokens >= 400 > whole.tokens - 16 * 23
    assert len(whole.blocks) > 1
    right = sampling.sample

    def stop(*arguments: object) -> object:
        if arguments[3] == (42, 1):
            raise KeyboardInterrupt
        return right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sampling, "sample", stop)
    with pytest.raises(KeyboardInterrupt):
        sample_text(config, tmp_path / "cut", "cpu")
    assert not is_sampled(config, tmp_path / "cut")
    with pytest.raises(SaeSweepError, match=r"has not sampled its text yet .* with task=generate first"):
        open_text(config, tmp_path / "cut")
    numbers: list[object] = []
    monkeypatch.setattr(sampling, "sample", lambda *a: numbers.append(a[3]) or right(*a))
    assert sample_text(config, tmp_path / "cut", "cpu").blocks == whole.blocks
    assert (42, 0) not in numbers
    assert fingerprint(config, tmp_path / "cut") == fingerprint(config, tmp_path / "whole")
    monkeypatch.setattr(sampling, "load_language_model", None)
    assert sample_text(config, tmp_path / "cut", "cpu").blocks == whole.blocks


def test_a_longer_text_begins_with_the_blocks_of_a_shorter_one(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, longer = dataset(model_folder), dataset(model_folder, tokens=800)
    before = sample_text(short, tmp_path, "cpu")
    numbers: list[object] = []
    right = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a: numbers.append(a[3]) or right(*a))
    after = sample_text(longer, tmp_path, "cpu")
    count = len(before.blocks)
    assert after.blocks[:count] == before.blocks
    assert numbers == [(42, number) for number in range(count, len(after.blocks))]
    assert is_sampled(short, tmp_path)
    assert open_text(short, tmp_path).units == count < open_text(longer, tmp_path).units
    assert fingerprint(short, tmp_path) != fingerprint(longer, tmp_path)


def test_a_sampled_text_is_read_once_and_in_part_held_out(model_folder: Path, tmp_path: Path) -> None:
    config = dataset(model_folder)
    manifest = sample_text(config, tmp_path, "cpu")
    text = open_text(config, tmp_path)
    train = [found for unit in range(text.units) for found, _ in text.read(unit)]
    held_out = list(text.held_out())
    assert held_out
    assert not set(train) & set(held_out)
    assert len({*train, *held_out}) == len(train) + len(held_out) == manifest.documents
    first = list(text.read(0))
    assert list(text.read(0, first[0][1])) == first[1:]
    assert f"{manifest.tokens:,} sampled tokens" in text.summary


def _block(folder: Path) -> Path:
    (path,) = folder.glob("sampled/*/block-000001.json")
    return path


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another letter": lambda path: path.write_text(path.read_text().replace("e", "3", 1)),
    "cut": lambda path: path.write_text(path.read_text()[:50]),
    "gone": Path.unlink,
    "another block": lambda path: path.write_bytes(path.with_name("block-000000.json").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_named_and_sampled_again(
    model_folder: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataset(model_folder)
    before = sample_text(config, tmp_path, "cpu")
    DAMAGE[damage](_block(tmp_path))
    with pytest.raises(SaeSweepError, match=r"block-000001.json: .*; task=generate samples it again"):
        open_text(config, tmp_path)
    assert not is_sampled(config, tmp_path)
    assert sample_text(config, tmp_path, "cpu").blocks == before.blocks
    open_text(config, tmp_path)


def test_other_weights_under_the_same_path_sample_anew(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "model")
    config = dataset(folder)
    sample_text(config, tmp_path, "cpu")
    before = fingerprint(config, tmp_path)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wte.weight += 0.1 * torch.randn(300, 16)
    model.save_pretrained(folder)
    assert not is_sampled(config, tmp_path)
    sample_text(config, tmp_path, "cpu")
    assert fingerprint(config, tmp_path) != before


def _ends_at_once(folder: Path, token: int) -> Path:
    """A model that always says one token."""
    save_gpt2(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.nn.functional.one_hot(torch.tensor(3), 16) * 100.0)
        model.transformer.wte.weight[:, 3] = 0
        model.transformer.wte.weight[token, 3] = 1
    model.save_pretrained(folder)
    return folder


def test_a_model_that_ends_its_text_at_once_is_refused_in_one_line(tmp_path: Path) -> None:
    config = dataset(_ends_at_once(tmp_path / "silent", token=0))
    with pytest.raises(SaeSweepError, match="of block 0 it ended 16 at once, and 0 were there before"):
        sample_text(config, tmp_path, "cpu")
    assert not list(tmp_path.glob("sampled/*/*.json"))


def test_a_model_that_repeats_itself_is_refused_once_it_has_nothing_new(tmp_path: Path) -> None:
    config = dataset(_ends_at_once(tmp_path / "monotone", token=70))
    with pytest.raises(SaeSweepError, match="of block 1 it ended 0 at once, and 16 were there before"):
        sample_text(config, tmp_path, "cpu")
    (first,) = tmp_path.glob("sampled/*/*.json")
    block = json.loads(first.read_text())
    assert (len(block["documents"]), block["repeated"], block["sampled"]) == (1, 15, 16 * 23)


def test_a_vocabulary_without_bos_is_refused_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "no bos")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(SaeSweepError, match="has no BOS token, from which text would be sampled"):
        sample_text(dataset(folder), tmp_path, "cpu")


def test_a_model_without_keys_and_values_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mamba", "mamba")
    with pytest.raises(SaeSweepError, match="keeps no keys and values between tokens: it cannot sample"):
        sample_text(dataset(folder), tmp_path, "cpu")


def test_the_provenance_of_a_text_is_recorded(model_folder: Path, tmp_path: Path) -> None:
    config = dataset(model_folder)
    sample_text(config, tmp_path, "cpu")
    manifest = FaithfulFiles(config, tmp_path).read_manifest()
    assert manifest is not None
    found = manifest.provenance
    assert (found["model"], found["seed"], found["longest"]) == (str(model_folder), 42, 24)
    assert found["sampled_documents"] == 16 * len(manifest.blocks)
    assert found["sampled_documents"] == manifest.documents + found["empty"] + found["repeated"]
    assert found["tokens_per_second"] > 0
    assert found["versions"]["torch"] == torch.__version__
