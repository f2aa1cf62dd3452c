"""An order of SAEs in which those that share the most stand beside each other."""

import numpy as np
from jaxtyping import Float


def cluster_order(ratios: Float[np.ndarray, "k k"]) -> list[int]:
    """Order SAEs by hierarchical clustering (average linkage, optimal leaf order; Bar-Joseph et al. 2001).

    Args:
        ratios: [i, j]: share of the features of SAE i that SAE j has; NaN where the two were not compared,
            which counts as nothing shared. The diagonal does not matter.

    Where all shares are equal, the SAEs stay in the order in which they are given.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    count = len(ratios)
    if count < 3:
        return list(range(count))
    shares = np.nan_to_num(ratios, nan=0.0)
    apart = 1 - (shares + shares.T) / 2
    np.fill_diagonal(apart, 0)
    distances = squareform(np.clip(apart, 0, None), checks=False)
    if np.ptp(distances) == 0:
        return list(range(count))
    order = leaves_list(optimal_leaf_ordering(linkage(distances, "average"), distances)).tolist()
    return order if order[0] <= order[-1] else order[::-1]
