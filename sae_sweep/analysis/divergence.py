"""How far two distributions of tokens are apart: Kullback-Leibler and Jensen-Shannon, in nats."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PSEUDOCOUNT = 0.01
"""Added to the count of every token before a KL, so that no ratio is infinite; more of it, over a large
vocabulary, would outweigh a thousand counts."""
_DRAWS = 50
"""Sets of counts whose mean divergence is that of counts drawn from a distribution itself."""


class Divergence(NamedTuple):
    """Divergences of two distributions, in nats; 0 where they are equal."""

    forward: float
    """KL(p || q)."""
    backward: float
    """KL(q || p)."""
    half_sum: float
    """Half of both, which FaithfulSAE (2025) prints as Jensen-Shannon."""
    jensen_shannon: float
    """The mean KL to the mixture of both: at most ln 2."""


def frequencies(counts: Int[Tensor, " vocabulary"], added: float = 0.0) -> Float[Tensor, " vocabulary"]:
    """Shares of tokens by how often each was seen, with a number added to each count."""
    more = counts.double() + added
    return more / more.sum()


def divergence(p: Float[Tensor, " vocabulary"], q: Float[Tensor, " vocabulary"]) -> Divergence:
    """Divergences of two distributions over the same tokens; KL is infinite where one lacks a token."""
    p, q = p.double(), q.double()
    forward, backward, middle = _kl(p, q), _kl(q, p), (p + q) / 2
    return Divergence(
        forward, backward, (forward + backward) / 2, jensen_shannon=(_kl(p, middle) + _kl(q, middle)) / 2
    )


def first_divergence(exact: Float[Tensor, " vocabulary"], counts: Int[Tensor, " vocabulary"]) -> Divergence:
    """Divergences of a distribution and a few counts: KL with smoothed counts, Jensen-Shannon with shares."""
    smoothed = divergence(exact, frequencies(counts, PSEUDOCOUNT))
    return smoothed._replace(jensen_shannon=divergence(exact, frequencies(counts)).jensen_shannon)


def drawn_divergence(exact: Float[Tensor, " vocabulary"], count: int) -> Divergence:
    """Mean `first_divergence` of `count` tokens that are drawn from the distribution itself."""
    rng = np.random.default_rng(0)
    p = exact.double().numpy()
    draws = rng.multinomial(count, p / p.sum(), size=_DRAWS)
    each = torch.tensor([first_divergence(exact, counts) for counts in torch.from_numpy(draws)])
    return Divergence(*each.double().mean(0).tolist())


def thinned(counts: Int[Tensor, " vocabulary"], count: int) -> Int[Tensor, " vocabulary"]:
    """Counts of `count` of the tokens, chosen at random without replacement.

    Raises:
        ValueError: if there are fewer.
    """
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.multivariate_hypergeometric(counts.numpy(), count, method="marginals"))


def _kl(p: Tensor, q: Tensor) -> float:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum().clamp(min=0).item()
