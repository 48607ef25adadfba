"""Water filling: an order of series in which every first part is as balanced as the data allow.

Boxes inside boxes (region, sequence, vendor, collection, patient) are filled with one tap. At each
level all boxes stand at the same water level until one is full; the rest goes to the others:

    ``slices of box i = min(c_i, level * c_i^(1 - balance))``,   c_i = slices that there are.

``balance = 1`` gives every box the same number, 0 its share of what there is. Instead of solving
for the level, each series gets the level at which the water reaches it, and series are sorted by
it, from the innermost boxes outwards. Plans of fewer slices are therefore first parts of larger
ones. Within a box the order is random, so that short series are not preferred to long ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def water_filling_order(
    levels: Sequence[npt.NDArray[np.generic]],
    sizes: Integers,
    ties: npt.NDArray[np.uint64],
    balance: float,
) -> Integers:
    """The order in which series are taken.

    Args:
        levels: From the outermost box inwards, the box of each series ``[N]``.
        sizes: Slices of each series ``[N]``, above 0.
        ties: Distinct numbers ``[N]`` that order what is equal.
        balance: 0 (in proportion) to 1 (equal).

    Returns:
        Positions ``[N]``, the first to be taken first. It depends on the rows, not on their order.
    """
    boxes = _boxes(levels)
    reached_at: npt.NDArray[np.float64] = np.zeros(len(sizes))
    for box in reversed(boxes):
        order = np.lexsort((ties, reached_at, box))
        below = np.cumsum(sizes[order]) - sizes[order]
        starts = np.flatnonzero(np.diff(box[order], prepend=-1))
        lengths = np.diff(np.append(starts, len(order)))
        below -= np.repeat(below[starts], lengths)
        totals = np.repeat(np.add.reduceat(sizes[order], starts), lengths)
        reached_at[order] = below / totals.astype(np.float64) ** (1.0 - balance)
    return np.lexsort((ties, reached_at))


def effective_number(slices: Sequence[int]) -> float:
    """How many equal boxes would be as balanced: ``exp(H)``, H the entropy of the shares.

    1 when one box holds everything, the number of boxes when all hold the same.
    """
    shares = np.array([n for n in slices if n > 0], dtype=np.float64)
    shares /= shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _boxes(levels: Sequence[npt.NDArray[np.generic]]) -> list[Integers]:
    """The box of each series at each level, numbered; the outermost one holds everything."""
    boxes: list[Integers] = [np.zeros(len(levels[0]), dtype=np.int64)]
    for level in levels:
        _, codes = np.unique(level, return_inverse=True)
        pair = boxes[-1] * (codes.max(initial=0) + 1) + codes
        boxes.append(np.unique(pair, return_inverse=True)[1].astype(np.int64))
    return boxes
