"""A preallocated cache, against transformers' own: what it holds is the same, whatever is done to it."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sae_sweep.activations import load_language_model, model
from sae_sweep.activations.key_value_cache import preallocated
from sae_sweep.activations.sampling import sample
from sae_sweep.config import ModelConfig
from tests.activations.conftest import save_gpt2

CHANGES: dict[str, Callable[[DynamicCache], None]] = {
    "select": lambda cache: cache.batch_select_indices(torch.tensor([3, 1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0, 1])),
    "crop": lambda cache: cache.crop(-2),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("begun", [0, 5])
def test_it_holds_what_transformers_own_holds(change: str, begun: int) -> None:
    caches = plain, ours = DynamicCache(), DynamicCache()
    for cache in caches:
        cache.layers = [DynamicLayer(), DynamicLayer()]

    def follow(tokens: int) -> None:
        for layer in range(2):
            batch = len(plain.layers[0].keys) if plain.get_seq_length() else 4
            keys, values = (torch.randn(batch, 2, tokens, width) for width in (3, 5))
            (one, _), (other, _) = (cache.update(keys, values, layer) for cache in caches)
            assert torch.equal(one, other)

    with torch.no_grad():
        if begun:
            follow(begun)
        preallocated(ours)
        for tokens in (1, 1, 70, *[1] * 140):
            follow(tokens)
        for cache in caches:
            CHANGES[change](cache)
        for tokens in (3, *[1] * 70):
            follow(tokens)
    assert plain.get_seq_length() == ours.get_seq_length()
    for one, other in zip(plain.layers, ours.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_a_token_goes_into_memory_that_is_there() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
    preallocated(cache)
    places = set()
    for _ in range(60):
        keys, values = cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1


def test_a_cache_of_another_kind_is_left_alone() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    before = list(cache.layers)
    assert preallocated(cache) is cache
    assert cache.layers == before
    assert preallocated("other") == "other"


def test_sampled_text_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_gpt2(tmp_path / "lm", n_positions=256)
    lm = load_language_model(ModelConfig(path=str(folder), dtype="float32"), torch.device("cpu"))
    found = sample(lm, 40, 200, (1, 0))
    assert max(len(one.tokens) for one in found) > 100
    assert any(one.ended for one in found)
    plain: list[DynamicCache] = []
    monkeypatch.setattr(model, "preallocated", lambda cache: plain.append(cache) or cache)
    assert sample(lm, 40, 200, (1, 0)) == found
    assert len(plain) == 1  # after the first token


def test_documents_that_leave_the_batch_free_their_memory() -> None:
    with torch.no_grad():
        cache = DynamicCache()
        cache.update(torch.zeros(8, 1, 1, 2), torch.zeros(8, 1, 1, 2), 0)
        preallocated(cache)
        buffer = weakref.ref(cache.layers[0].keys._base)
        cache.batch_select_indices(torch.tensor([1]))
        assert buffer() is None
