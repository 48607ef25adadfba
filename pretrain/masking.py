"""Block masks of iBOT: which patches of a global view the student does not see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pretrain.config import MaskingConfig
from pretrain.sampler import MASKS, random_stream

MAX_ASPECT = 1 / 0.3
"""Longest block, as in BEiT (arXiv 2106.08254)."""
_ATTEMPTS = 10


def sample_masks(
    samples: npt.NDArray[np.int64],
    grid: tuple[int, int],
    config: MaskingConfig,
    *,
    seed: int,
    num_views: int = 2,
) -> npt.NDArray[np.bool_]:
    """Masks of a batch; those of a sample depend on the seed and its global index alone.

    Args:
        samples: [B], global sample indices.
        grid: (h, w) patches of a view, at least 2 x 2.
        config: Probability, ratio, smallest block.
        seed: Of the run.
        num_views: Masks for each sample, V.

    Returns:
        Bool [B, V, h, w]; True is masked. A view that is chosen has at least one masked patch and
        at least one that is not.
    """
    masks = np.zeros((len(samples), num_views, *grid), dtype=np.bool_)
    for row, sample in enumerate(samples):
        random = random_stream(seed, int(sample), MASKS)
        for view in range(num_views):
            if random.random() < config.probability:
                ratio = random.uniform(*config.ratio)
                masks[row, view] = (
                    block_mask(grid, ratio, config, random)
                    if config.kind == "block"
                    else inverse_mask(grid, ratio, random)
                )
    return masks


def inverse_mask(
    grid: tuple[int, int], ratio: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """A mask of exactly ``round(ratio * h * w)`` patches around one block that is seen.

    The block goes on at the opposite side where it leaves the view, so that all patches are seen
    equally often, as in CAPI (Darcet et al., arXiv 2502.08769); single patches make up the number.
    """
    seen = grid[0] * grid[1] - _number(grid, ratio)
    aspect = np.exp(random.uniform(-np.log(MAX_ASPECT), np.log(MAX_ASPECT)))
    rows = min(max(round((seen * aspect) ** 0.5), 1), grid[0])
    columns = min(seen // rows, grid[1])
    mask = np.ones(grid, dtype=np.bool_)
    mask[:rows, :columns] = False
    single = random.choice(np.flatnonzero(mask), seen - rows * columns, replace=False)
    mask.flat[single] = False
    return np.roll(mask, (random.integers(grid[0]), random.integers(grid[1])), (0, 1))


def block_mask(
    grid: tuple[int, int], ratio: float, config: MaskingConfig, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """One mask of exactly ``round(ratio * h * w)`` patches (at least 1, at most all but one).

    Blocks of random area and shape are laid while they fit into what is left; single patches make
    up the rest, so that small grids and small ratios get their number too.
    """
    height, width = grid
    mask = np.zeros(grid, dtype=np.bool_)
    left = _number(grid, ratio)
    for _ in range(_ATTEMPTS):
        if left < config.min_block:
            break
        area = random.uniform(config.min_block, left)
        aspect = np.exp(random.uniform(-np.log(MAX_ASPECT), np.log(MAX_ASPECT)))
        rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if not (0 < rows <= height and 0 < columns <= width):
            continue
        top = random.integers(height - rows + 1)
        side = random.integers(width - columns + 1)
        block = mask[top : top + rows, side : side + columns]
        if 0 < np.count_nonzero(~block) <= left:
            left -= int(np.count_nonzero(~block))
            block[...] = True
    free = np.flatnonzero(~mask)
    mask.flat[random.choice(free, left, replace=False)] = True
    return mask


def _number(grid: tuple[int, int], ratio: float) -> int:
    """Patches to be hidden: at least 1, at most all but one."""
    size = grid[0] * grid[1]
    return min(max(round(ratio * size), 1), size - 1)
