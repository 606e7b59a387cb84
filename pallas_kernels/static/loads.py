"""How a router may spread rows over experts: the group sizes that steps are counted for, with fixed seeds."""

import numpy as np

NAMES = ("balanced", "random", "skewed")


def group_sizes(name: str, rows: int, groups: int) -> np.ndarray:
    """Sizes [groups] that add up to `rows`.

    Args:
      name: "balanced": equal, as nearly as can be. "random": each row chooses freely. "skewed": by Zipf's law with
        exponent one half, so that of 256 groups the most popular has eight times the average, and the order of
        popularity is random.
      rows, groups: how many there are.
    """
    if name == "balanced":
        return np.full(groups, rows // groups) + (np.arange(groups) < rows % groups)
    rng = np.random.default_rng(0)
    weights = np.ones(groups) if name == "random" else 1 / np.sqrt(1 + rng.permutation(groups))
    return rng.multinomial(rows, weights / weights.sum())
