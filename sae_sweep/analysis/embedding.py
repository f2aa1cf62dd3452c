"""Decoders in two dimensions (UMAP), and random dictionaries of the same shape to hold beside them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweep.config import SaeSweepError

METRICS = ("euclidean", "cosine")
NEIGHBOURS = 15
LEAST_ROWS = 4
"""Below that, there is no spectral layout to begin with."""


@contextmanager
def threads_kept() -> Iterator[None]:
    """Keep torch's number of threads: numba and scikit-learn change it, and the last bits of its products."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@threads_kept()
def umap_embedding(
    rows: Float[Tensor, "n d"], *, metric: str = "euclidean", neighbours: int = NEIGHBOURS, seed: int = 0
) -> Float[np.ndarray, "n 2"]:
    """Embed rows, such as those of a decoder, in two dimensions with UMAP (McInnes et al. 2018).

    Distances between far clusters mean little, and UMAP makes clusters of random rows as well: hold the
    embedding of a random dictionary beside it.

    Args:
        rows: any number of them; NaN rows and, for cosines, rows of zeros have no place and become NaN.
        metric: euclidean (the study's default) or cosine.
        neighbours: of each row that are kept close; fewer where there are no more rows.
        seed: of the layout. Equal seeds give equal embeddings on one machine and version of umap-learn.

    Raises:
        SaeSweepError: if there are too few rows, or the extra `figures` is not installed.
    """
    if metric not in METRICS:
        raise SaeSweepError(f"UMAP: metric={metric!r} is none of {', '.join(METRICS)}")
    values = rows.detach().cpu().float()
    there = values.isfinite().all(1)
    if metric == "cosine":
        there &= values.norm(dim=1) > 0
    n = int(there.sum())
    if n < LEAST_ROWS:
        raise SaeSweepError(f"UMAP: {n} features have a decoder direction, and it needs {LEAST_ROWS}")
    reduce = _reducer()(
        n_neighbors=min(neighbours, n - 1), metric=metric, random_state=seed % 2**32, n_jobs=1
    )
    embedding = np.full((len(values), 2), np.nan, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on graphs that fall into parts, and on what scikit-learn renames
        embedding[there.numpy()] = reduce.fit_transform(values[there].numpy())
    return embedding


def _reducer() -> Callable[..., Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # its variant for TensorFlow is not needed
            from umap import UMAP
    except ModuleNotFoundError as error:
        raise SaeSweepError(
            f"the decoder UMAP needs a package that is not installed ({error.name}): "
            "pip install 'sae-sweep[figures]'"
        ) from error
    return UMAP


def random_dictionary(decoder: Float[Tensor, "n d"], seed: int = 0) -> Float[Tensor, "n d"]:
    """Rows of random directions with the norms of a decoder's rows."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(decoder.shape, generator=generator)
    return torch.nn.functional.normalize(directions, dim=1) * decoder.detach().cpu().float().norm(
        dim=1, keepdim=True
    )
