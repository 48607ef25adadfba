"""Which slice comes when, and what is left of it: a pure function of (seed, global sample index).

Any restart and any number of workers see the same samples. Shape letters: ``W`` phase encoding.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.physics.masks import undersampling_mask
from downstream.reconstruction.training.config import Undersampling

_ORDER, _DRAW = 1, 2


def place(seed: int, index: int, count: int) -> int:
    """Which of `count` slices sample `index` is: every epoch in a new order."""
    return int(_permutation(seed, index // count, count)[index % count])


def generator(seed: int, index: int) -> np.random.Generator:
    """Draws everything of sample `index`: movement, coils, phase, noise, mask, splits."""
    return np.random.default_rng((seed, _DRAW, index))


def draw_lines(settings: Undersampling, width: int, rng: np.random.Generator) -> Tensor:
    """A mask of lines for training, bool ``[W]``.

    With ``between`` the acceleration is drawn evenly from the whole range, and the center fraction
    that belongs to it is interpolated.
    """
    rates, fractions = settings.accelerations, settings.center_fractions
    kind = settings.masks[int(rng.integers(len(settings.masks)))]
    if settings.between:
        rate = float(rng.uniform(rates[0], rates[-1]))
        fraction = float(np.interp(rate, rates, fractions))
    else:
        choice = int(rng.integers(len(rates)))
        rate, fraction = rates[choice], fractions[choice]
    return undersampling_mask(
        kind,
        (1, width),
        center_fractions=[fraction],
        accelerations=[rate],
        seed=int(rng.integers(2**31)),
    ).reshape(-1)


def fixed_lines(settings: Undersampling, choice: int, width: int, seed: tuple[int, ...]) -> Tensor:
    """A mask for validation and tests, bool ``[W]``: the first kind, acceleration `choice`."""
    return undersampling_mask(
        settings.masks[0],
        (1, width),
        center_fractions=[settings.center_fractions[choice]],
        accelerations=[settings.accelerations[choice]],
        seed=seed,
    ).reshape(-1)


def kept(kspace: Tensor, mask: Tensor) -> Tensor:
    """Samples ``[C, H, W]`` of lines ``[W]`` or points ``[H, W]``, zeros elsewhere."""
    return torch.where(mask, kspace, 0)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)
