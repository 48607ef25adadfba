"""Undersampling masks with the draws of fastMRI, bit for bit.

A mask switches phase-encode lines (columns). Low frequencies are kept whole, the others are drawn
by `kind`. Rules and order of the draws follow facebookresearch/fastMRI,
`fastmri/data/subsample.py`; the random numbers are those of `numpy.random.RandomState`.

The released brain models of 2020 were trained with the name "equispaced", which is today's
``equispaced_fraction``; today's ``equispaced`` gives an acceleration of only about 3.2 where 4 is
asked for, because the center comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import ConfigError

MaskKind = Literal["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class UndersamplingMask:
    """A mask and what was drawn for it."""

    mask: Tensor
    """Bool ``[1, ..., 1, phase]``."""
    num_low_frequencies: int
    """Lines of the center that are kept whole."""
    acceleration: float
    """The acceleration that was asked for."""


def undersampling_mask(
    kind: MaskKind,
    shape: Sequence[int],
    *,
    center_fractions: Sequence[float],
    accelerations: Sequence[float],
    seed: int | tuple[int, ...] | None,
    allow_any_combination: bool = False,
) -> Tensor:
    """A mask of phase-encode lines; see `draw_mask`.

    Returns:
        Bool ``[1, ..., 1, phase]``, of as many dimensions as `shape`.
    """
    return draw_mask(
        kind,
        shape,
        center_fractions=center_fractions,
        accelerations=accelerations,
        seed=seed,
        allow_any_combination=allow_any_combination,
    ).mask


def draw_mask(
    kind: MaskKind,
    shape: Sequence[int],
    *,
    center_fractions: Sequence[float],
    accelerations: Sequence[float],
    seed: int | tuple[int, ...] | None,
    allow_any_combination: bool = False,
) -> UndersamplingMask:
    """Draw a mask, and say how much of the center it keeps.

    Args:
        kind: ``random`` draws each line; ``equispaced`` takes every R-th from a drawn offset, the
            center on top; ``equispaced_fraction`` widens the step so that the center is counted;
            ``magic`` and ``magic_fraction`` do the same with an offset that uses conjugate symmetry
            of k-space (opposite halves sample lines that do not mirror each other).
        shape: ``[..., readout, phase]``; only the last entry and their number matter.
        center_fractions: Part of the lines that form the center, one per setting.
        accelerations: Acceleration R, one per setting.
        seed: Same seed, same mask. fastMRI seeds validation and test with `mask_seed` of the file
            name. None draws afresh from the operating system.
        allow_any_combination: Draw center fraction and acceleration independently.

    Raises:
        ConfigError: CONFIG-01 for an unknown kind, a fraction outside (0, 1), an acceleration below
            1 or lists of different length; CONFIG-05 when ``equispaced_fraction`` has no line left
            beside the center.
    """
    _check(kind, shape, center_fractions, accelerations, allow_any_combination)
    rng = np.random.RandomState(seed)
    if allow_any_combination:
        fraction = center_fractions[rng.randint(len(center_fractions))]
        acceleration = accelerations[rng.randint(len(accelerations))]
    else:
        choice = rng.randint(len(center_fractions))
        fraction, acceleration = center_fractions[choice], accelerations[choice]
    width = shape[-1]
    num_low = round(width * fraction)
    if kind == "magic_fraction":
        num_low = max(min(num_low, round(width / acceleration)), 1)
    if kind == "equispaced_fraction" and num_low * acceleration >= width:
        raise ConfigError(
            "CONFIG-05",
            f"{num_low} of {width} lines for the center leave none at acceleration {acceleration}.",
            fix="Lower the center fraction or the acceleration.",
        )
    lines = _DRAWS[kind](width, acceleration, num_low, rng)
    start = (width - num_low + 1) // 2
    lines[start : start + num_low] = True
    mask = torch.from_numpy(lines).reshape(*[1] * (len(shape) - 1), width)
    return UndersamplingMask(mask, num_low, acceleration)


def mask_seed(file_name: str) -> tuple[int, ...]:
    """The seed that fastMRI takes for a volume: the code points of its file name with ``.h5``."""
    return tuple(map(ord, file_name))


def center_lines(mask: Tensor | Bools) -> int:
    """Lines of the symmetric run of sampled lines around the center of a given mask.

    As the sensitivity network of VarNet finds them (fastMRI, `fastmri/models/varnet.py`): twice the
    smaller of the runs to the left and to the right of ``n // 2``, at least one line.

    Args:
        mask: Bool, any shape with the lines in the last dimension and nothing in the others.
    """
    lines = np.asarray(mask).reshape(-1).astype(bool)
    half = len(lines) // 2
    left = int(np.argmin(lines[:half][::-1])) if not lines[:half].all() else half
    right = int(np.argmin(lines[half:])) if not lines[half:].all() else len(lines) - half
    return max(2 * min(left, right), 1)


def apply_mask(kspace: Tensor, mask: Tensor) -> Tensor:
    """Zero the lines that are off.

    ``0.0`` is added, because ``x * 0`` keeps the sign of x as minus zero: the first test set of
    fastMRI leaked the signs of its masked samples so.

    Args:
        kspace: Complex ``[..., readout, phase]``.
        mask: Bool ``[1, ..., 1, phase]``.
    """
    return kspace * mask + 0.0


def _random(width: int, acceleration: float, num_low: int, rng: np.random.RandomState) -> Bools:
    probability = (width / acceleration - num_low) / (width - num_low)
    lines: Bools = rng.uniform(size=width) < probability
    return lines


def _equispaced(width: int, acceleration: float, _: int, rng: np.random.RandomState) -> Bools:
    step = round(acceleration)
    lines = np.zeros(width, dtype=bool)
    lines[rng.randint(0, high=step) :: step] = True
    return lines


def _equispaced_fraction(
    width: int, acceleration: float, num_low: int, rng: np.random.RandomState
) -> Bools:
    step = (acceleration * (num_low - width)) / (num_low * acceleration - width)
    offset = rng.randint(0, high=round(step))
    lines = np.zeros(width, dtype=bool)
    lines[np.around(np.arange(offset, width - 1, step)).astype(np.uint)] = True
    return lines


def _magic(width: int, acceleration: float, _: int, rng: np.random.RandomState) -> Bools:
    return _offset_halves(width, round(acceleration), rng)


def _magic_fraction(
    width: int, acceleration: float, num_low: int, rng: np.random.RandomState
) -> Bools:
    left = round(width / acceleration) - num_low
    if left <= 0:
        return np.zeros(width, dtype=bool)
    return _offset_halves(width, round(width / left), rng)


def _offset_halves(width: int, step: int, rng: np.random.RandomState) -> Bools:
    """Positive and negative frequencies with offsets that do not mirror each other.

    Source: Defazio, Offset sampling improves deep learning based accelerated MRI reconstructions by
    exploiting symmetry, arXiv:1912.01101 (2019).
    """
    offset = rng.randint(0, high=step)
    positive, negative = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    half = (width + 1) // 2
    first, second = np.zeros(half, dtype=bool), np.zeros(width // 2, dtype=bool)
    first[positive::step] = True
    second[negative::step] = True
    return np.fft.fftshift(np.concatenate([first, second[::-1]]))


_DRAWS = {
    "random": _random,
    "equispaced": _equispaced,
    "equispaced_fraction": _equispaced_fraction,
    "magic": _magic,
    "magic_fraction": _magic_fraction,
}


def _check(
    kind: str,
    shape: Sequence[int],
    fractions: Sequence[float],
    accelerations: Sequence[float],
    any_combination: bool,
) -> None:
    if kind not in get_args(MaskKind):
        raise ConfigError(
            "CONFIG-01", f"mask kind {kind!r}: must be one of {', '.join(get_args(MaskKind))}."
        )
    if len(shape) < 2 or shape[-1] < 1:
        raise ConfigError("CONFIG-01", f"shape {tuple(shape)}: must be [..., readout, phase].")
    if not fractions or not accelerations:
        raise ConfigError("CONFIG-01", "center_fractions and accelerations must not be empty.")
    if len(fractions) != len(accelerations) and not any_combination:
        raise ConfigError(
            "CONFIG-01",
            f"{len(fractions)} center fractions and {len(accelerations)} accelerations: give one "
            "of each per setting.",
        )
    if not all(0 < f < 1 for f in fractions) or not all(a >= 1 for a in accelerations):
        raise ConfigError(
            "CONFIG-01",
            f"center fractions {list(fractions)} must lie in (0, 1), accelerations "
            f"{list(accelerations)} be 1 or more.",
        )
