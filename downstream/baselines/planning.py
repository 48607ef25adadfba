"""A 2D U-Net planned from its training data by the rules of nnU-Net.

Source: Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation, Nat. Methods 18 (2021), and the planner of nnunetv2 2.8 (`tests/downstream` compares).
In the plane:

* spacing: the median of the training volumes;
* patch: the median size of a slice at that spacing, and no more than `MAX_PIXELS`. nnU-Net shrinks
  patches until they fit a graphics card of 8 GB, which slices of up to 512 x 512 do;
* pooling: an axis is halved as long as 4 pixels or more are left, and finer axes first until
  spacings are within a factor 2; a kernel is 3 wide on axes within that factor, else 1;
* channels: 32, doubled at every stage, 512 at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_EDGE = 4
"""Pixels along an axis at the lowest resolution."""
MAX_ANISOTROPY = 2
FIRST_CHANNELS, MAX_CHANNELS = 32, 512
MAX_PIXELS = 512 * 512
MIN_STAGES = 3
"""Of MONAI's `DynUNet`; smaller slices are padded."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Grid and topology of a 2D U-Net; a stage is a resolution, the highest first."""

    spacing: tuple[float, float]
    """Row and column spacing, in the unit of the spacings it was planned from."""
    patch: Size
    """Rows and columns of a training patch, divisible by all strides."""
    strides: tuple[Size, ...]
    """Per stage; the first one is (1, 1)."""
    kernels: tuple[Size, ...]
    """Per stage."""
    channels: tuple[int, ...]
    """Per stage."""


def plan_unet(shapes: Sequence[Size], spacings: Sequence[tuple[float, float]]) -> Plan:
    """The plan for training volumes of these slices.

    Args:
        shapes: Rows and columns of the slices of each volume.
        spacings: Row and column spacing of each volume.
    """
    target = np.median(np.array(spacings, dtype=np.float64), axis=0)
    pairs = zip(shapes, spacings, strict=True)
    size = np.median([resampled_shape(n, s, target.tolist()) for n, s in pairs], axis=0)
    size *= min(1.0, math.sqrt(MAX_PIXELS / size.prod()))
    smallest = MIN_EDGE * 2 ** (MIN_STAGES - 1)
    patch = np.maximum(np.round(size), smallest).astype(int)
    strides, kernels = topology(patch.tolist(), target.tolist())
    factor = np.array(strides).prod(axis=0)
    patch = np.ceil(patch / factor).astype(int) * factor
    return Plan(
        spacing=(float(target[0]), float(target[1])),
        patch=(int(patch[0]), int(patch[1])),
        strides=strides,
        kernels=kernels,
        channels=tuple(min(FIRST_CHANNELS * 2**i, MAX_CHANNELS) for i in range(len(strides))),
    )


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> Size:
    """Rows and columns of a slice at another spacing."""
    rows, columns = (round(n * s / t) for n, s, t in zip(shape, spacing, target, strict=True))
    return max(1, rows), max(1, columns)


def topology(
    patch: Sequence[int], spacing: Sequence[float]
) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """Strides and kernels of every stage."""
    sizes, widths = np.array(patch), np.array(spacing, dtype=np.float64)
    strides: list[Size] = [(1, 1)]
    kernels: list[Size] = []
    kernel = np.ones(2, dtype=int)
    while (sizes >= 2 * MIN_EDGE).any():
        large = sizes >= 2 * MIN_EDGE
        halved = large & (widths / widths[large].min() < MAX_ANISOTROPY)
        if halved.sum() == 1 and sizes[halved][0] < 3 * MIN_EDGE:
            break
        kernel[widths / widths.min() < MAX_ANISOTROPY] = 3
        kernels.append((int(kernel[0]), int(kernel[1])))
        strides.append((1 + int(halved[0]), 1 + int(halved[1])))
        widths = np.where(halved, widths * 2, widths)
        sizes = np.where(halved, -(-sizes // 2), sizes)
    return tuple(strides), (*kernels, (3, 3))
