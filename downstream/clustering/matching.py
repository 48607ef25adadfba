"""Which cluster is which structure: by looking (oracle), or chosen on training patients.

Scores are Dice per slice, over the slices that show a structure: S of them, K clusters, N classes
with the background first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def dice_table(
    clusters: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8], num_clusters: int, num: int
) -> Scores:
    """Dice [S, K, N - 1] of every cluster with every structure; nan where a slice lacks it.

    Args:
        clusters: [S, H, W], below `num_clusters`.
        classes: [S, H, W], 0 for background, below `num`.
        num_clusters: K.
        num: N.
    """
    slices = len(clusters)
    index = clusters.astype(np.int64) * num + classes
    index += np.arange(slices)[:, None, None] * (num_clusters * num)
    counts = np.bincount(index.ravel(), minlength=slices * num_clusters * num)
    both = counts.reshape(slices, num_clusters, num).astype(np.float64)
    in_class = both.sum(1, keepdims=True)
    table: Scores = 2 * both / np.maximum(both.sum(2, keepdims=True) + in_class, 1)
    return np.where(in_class > 0, table, np.nan)[..., 1:]


def oracle(table: Scores) -> Scores:
    """[N - 1], per structure: the best cluster of every slice, averaged; nan where none shows it.

    It looks at the reference, so it bounds what any choice of one cluster a slice can reach.
    """
    return _mean(table.max(1))


def choose(table: Scores) -> npt.NDArray[np.intp]:
    """[N - 1], per structure: the cluster with the best mean; of training slices."""
    means = np.stack([_mean(table[:, cluster]) for cluster in range(table.shape[1])])
    chosen: npt.NDArray[np.intp] = np.nan_to_num(means).argmax(0)
    return chosen


def matched(table: Scores, chosen: npt.NDArray[np.intp]) -> Scores:
    """[N - 1], per structure: the chosen cluster, averaged over the slices that show it."""
    return _mean(table[:, chosen, np.arange(len(chosen))])


def _mean(values: Scores) -> Scores:
    """Mean over slices [S, N - 1] without the nan ones."""
    shown = ~np.isnan(values)
    total = np.where(shown, values, 0).sum(0)
    with np.errstate(invalid="ignore"):
        return total / shown.sum(0)
