"""Features that fire together, and the codes that are kept for it, against naive computations."""

from itertools import pairwise

import pytest
import torch

from sae_sweep.analysis import cofiring
from sae_sweep.analysis.codes import Codes
from sae_sweep.analysis.cofiring import partners
from sae_sweep.analysis.firing import Activations

TOKENS, D_SAE = 60, 12


def dense(seed: int = 0) -> torch.Tensor:
    """Codes in which features 10 and 11 never fire."""
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(TOKENS, D_SAE, generator=generator) * (
        torch.rand(TOKENS, D_SAE, generator=generator) < 0.3
    )
    f[:, 10:] = 0
    f[7] = 0
    return f


def codes_of(f: torch.Tensor, cuts: tuple[int, ...] = (), most: int = 2**25, start: int = 0) -> Codes:
    codes = Codes(D_SAE, most)
    ends = [0, *cuts, len(f)]
    for low, high in pairwise(ends):
        tokens = torch.arange(start + low, start + high)
        codes.update(Activations.of(f[low:high]), tokens % 8, tokens // 8)
    return codes


def rows_of(codes: Codes) -> list[tuple]:
    offsets = codes.offsets.tolist()
    return [
        (
            codes.features[low:high].tolist(),
            codes.values[low:high].tolist(),
            int(codes.positions[row]),
            int(codes.sequences[row]),
        )
        for row, (low, high) in enumerate(pairwise(offsets))
    ]


@pytest.mark.parametrize("most", [1, 20, 45, 2**25])
def test_codes_are_the_first_whole_tokens_however_the_text_is_cut(most: int) -> None:
    f = dense()
    whole = rows_of(codes_of(f, most=most))
    held = (f != 0).sum(1).cumsum(0) <= most
    assert len(whole) == held.sum()
    for row, (features, values, position, sequence) in enumerate(whole):
        assert features == f[row].nonzero()[:, 0].tolist()
        assert values == f[row][features].tolist()
        assert (position, sequence) == (row % 8, row // 8)
    assert codes_of(f, most=most).complete == bool(held.all())
    assert rows_of(codes_of(f, (1, 2, 30), most)) == whole
    for cut in (0, 5, 30, TOKENS):
        merged = codes_of(f[:cut], most=most)
        merged.merge(codes_of(f[cut:], most=most, start=cut))
        assert rows_of(merged) == whole
        assert merged.complete == bool(held.all())


@pytest.mark.parametrize("at_once", [1, 40, 2**26])
@pytest.mark.parametrize("most", [1, 3, 20])
def test_partners_are_those_of_a_naive_count(monkeypatch, at_once: int, most: int) -> None:
    monkeypatch.setattr(cofiring, "_COUNTS_AT_ONCE", at_once)
    f = dense()
    found = partners(codes_of(f), most)
    fires = (f != 0).long()
    joint = fires.T @ fires
    either = fires.sum(0)[:, None] + fires.sum(0) - joint
    assert found.tokens == TOKENS
    for feature in range(D_SAE):
        ranked = sorted(
            (other for other in range(D_SAE) if other != feature and joint[feature, other]),
            key=lambda other, feature=feature: (-(joint[feature, other] / either[feature, other]), other),
        )[:most]
        assert found.ids[feature].tolist() == ranked + [-1] * (most - len(ranked))
        assert found.counts[feature][: len(ranked)].tolist() == joint[feature, ranked].tolist()
        expected = (joint[feature, ranked] / either[feature, ranked]).tolist()
        assert found.jaccard[feature][: len(ranked)].tolist() == pytest.approx(expected)
        assert found.jaccard[feature][len(ranked) :].isnan().all()


def test_no_tokens_have_no_partners() -> None:
    assert (partners(Codes(D_SAE), 2).ids == -1).all()
