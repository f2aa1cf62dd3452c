"""What is matched of a dictionary: matrix, features or neurons, without unusable rows; and its nulls."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweep.analysis.matching import unit_rows
from sae_sweep.config import SaeSweepError

Matrix = Literal["decoder", "encoder", "both"]
Side = Literal["features", "neurons"]


class HasBoth(Protocol):
    """Anything with an encoder and a decoder: every SAE of this project."""

    @property
    def W_enc(self) -> Tensor: ...  # noqa: N802  (the field's own name)
    @property
    def W_dec(self) -> Tensor: ...  # noqa: N802


class Kept(NamedTuple):
    """The rows of a dictionary that can be matched, and how many were left out and why."""

    ids: Int[Tensor, " kept"]
    """Their numbers in the dictionary, on the CPU."""
    n: int
    """Features of the dictionary, or its neurons."""
    zero: int
    """Rows left out because all their entries are 0."""
    not_finite: int
    """Rows left out because they hold NaN or inf."""
    dead: int
    """Features left out because they never fire, beside the ones above; 0 if densities were not given."""

    @property
    def left_out(self) -> str:
        """What was left out, in words; empty if nothing was."""
        reasons = {"all zero": self.zero, "NaN or inf": self.not_finite, "dead": self.dead}
        return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)


class Rows(NamedTuple):
    """The rows that can be matched, scaled to length 1."""

    unit: Float[Tensor, "kept width"]
    kept: Kept


def rows_of(
    sae: HasBoth,
    matrix: Matrix = "decoder",
    side: Side = "features",
    densities: Float[Tensor, " _"] | None = None,
) -> Rows:
    """Take the rows to be matched from an SAE.

    Args:
        sae: its `W_enc` [d_in, d_sae] and `W_dec` [d_sae, d_in].
        matrix: `both` puts encoder and decoder side by side, each of length 1 before that: a cosine of such
            rows is the mean of the two.
        side: a feature has d_in entries. A neuron of the residual stream has d_sae, one per feature, so that
            features of the same number are compared.
        densities: share of tokens on which each feature fires; with it, dead features are left out.

    Raises:
        SaeSweepError: for shapes that do not fit, or densities of neurons.
    """
    if densities is not None and side == "neurons":
        raise SaeSweepError("matching: densities belong to features, and neurons are to be matched")
    return usable_rows(_matrices(sae, matrix, side), densities)


def usable_rows(
    matrices: Sequence[Float[Tensor, "n width"]], densities: Float[Tensor, " _"] | None = None
) -> Rows:
    """Rows of one or more matrices side by side, each scaled to length 1, without those of no use in any."""
    kept = find_usable(matrices, densities)
    units = [unit_rows(one[kept.ids.to(one.device)].float()) for one in matrices]
    return Rows(torch.cat(units, 1) / len(units) ** 0.5, kept)


def find_usable(
    matrices: Sequence[Float[Tensor, "n width"]], densities: Float[Tensor, " _"] | None = None
) -> Kept:
    """Find the rows that are finite and not zero in all of the matrices, and belong to live features."""
    n = len(matrices[0])
    if densities is not None and densities.shape != (n,):
        raise SaeSweepError(
            f"matching: densities have shape {tuple(densities.shape)}, and there are {n} features to match"
        )
    live = torch.ones(n, dtype=torch.bool) if densities is None else densities.cpu() > 0
    finite = torch.stack([one.isfinite().all(1) for one in matrices]).all(0).cpu()
    zero = torch.stack([(one == 0).all(1) for one in matrices]).any(0).cpu() & finite
    ids = (finite & ~zero & live).nonzero()[:, 0]
    return Kept(
        ids=ids,
        n=n,
        zero=int(zero.sum()),
        not_finite=int((~finite).sum()),
        dead=int((finite & ~zero & ~live).sum()),
    )


def halves(unit: Float[Tensor, "n two_d"]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_in"]]:
    """Decoder and encoder rows, of length 1, from rows of both."""
    decoder, encoder = unit.chunk(2, dim=1)
    return unit_rows(decoder), unit_rows(encoder)


def _matrices(sae: HasBoth, matrix: Matrix, side: Side) -> list[Tensor]:
    """The chosen matrices, a row per feature or neuron."""
    found: list[Tensor] = []
    if matrix != "encoder":
        found.append(sae.W_dec.detach())
    if matrix != "decoder":
        found.append(sae.W_enc.detach().T)
    if any(one.ndim != 2 for one in found) or len({one.shape for one in found}) != 1:
        shapes = " and ".join(str(tuple(one.shape)) for one in found)
        raise SaeSweepError(f"matching: weights of shape {shapes}, a row per feature, do not fit each other")
    return [one if side == "features" else one.T for one in found]


def random_rows(n: int, width: int, seed: int) -> Float[Tensor, "n width"]:
    """Null: directions drawn uniformly from the sphere."""
    return unit_rows(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def rotated_rows(unit: Float[Tensor, "n width"], seed: int) -> Float[Tensor, "n width"]:
    """Null: the dictionary turned by a random orthogonal matrix: it keeps all cosines between its own rows.

    The same seed turns dictionaries of one width alike, such as encoder and decoder.
    """
    width = unit.shape[1]
    normal = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    rotation = (q * r.diagonal().sign()).to(unit)  # uniform among all of them (Mezzadri 2007)
    return unit_rows(unit @ rotation)


def token_rows(residuals: Float[Tensor, "tokens width"], n: int, seed: int) -> Float[Tensor, "n width"]:
    """Null: directions of the data itself, the inputs of the SAE at `n` random tokens.

    Raises:
        SaeSweepError: for fewer than `n` tokens whose residuals are finite and not zero.
    """
    usable = (residuals.isfinite().all(1) & (residuals != 0).any(1)).nonzero()[:, 0].cpu()
    if len(usable) < n:
        raise SaeSweepError(
            f"matching: a null of {n:,} rows needs as many tokens, and there are {len(usable):,}: raise "
            "matching.tokens, or leave tokens out of matching.nulls"
        )
    chosen = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[:n]]
    return unit_rows(residuals[chosen.to(residuals.device)].float())


def nulls(
    unit: Float[Tensor, "n width"],
    seed: int,
    *,
    residuals: Float[Tensor, "tokens width"] | None = None,
    initial: Float[Tensor, "n_init width"] | None = None,
) -> dict[str, Callable[[], Float[Tensor, "rows width"]]]:
    """Dictionaries that take `unit`'s place in a comparison, by name, each made when it is called.

    `random` and `rotated` always; `tokens` with residuals in SAE-input space; `initial` with the dictionary
    from which the SAE was trained (`initial_decoder`).
    """
    made: dict[str, Callable[[], Tensor]] = {
        "random": lambda: random_rows(len(unit), unit.shape[1], seed).to(unit),
        "rotated": lambda: rotated_rows(unit, seed),
    }
    if residuals is not None:
        made["tokens"] = lambda: token_rows(residuals, len(unit), seed).to(unit)
    if initial is not None:
        made["initial"] = lambda: unit_rows(initial.detach().float()).to(unit)
    return made
