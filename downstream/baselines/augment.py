"""nnU-Net's augmentation of slices, made of MONAI's transforms.

Kinds, ranges and probabilities are those of the default trainer of nnunetv2 2.8 in 2D: rotation,
scaling, noise, blur, brightness, contrast, low resolution, gamma (also of the inverted image) and
mirrors. Mirrors are left out where a structure has a side, as nnU-Net advises.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from monai.transforms import Compose

ELONGATED = 1.5
"""Patches longer than this many widths are rotated by 15 degrees at most, others by 180."""


def make_augmentation(patch: tuple[int, int], *, mirror: bool) -> Compose:
    """The transform of a dictionary of ``image [C, H, W]`` (zero mean, unit spread) and ``mask``.

    Args:
        patch: Size of the slices.
        mirror: Whether they may be mirrored along both axes.
    """
    from monai import transforms as T

    both = {"keys": ("image", "mask"), "mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    angle = math.pi if max(patch) / min(patch) <= ELONGATED else math.radians(15)
    image = "image"
    steps = [
        T.RandRotated(range_x=angle, prob=0.2, **both),
        T.RandZoomd(
            keys=("image", "mask"), min_zoom=0.7, max_zoom=1.4, prob=0.2,
            mode=("bilinear", "nearest"), padding_mode="constant",
        ),
        T.RandGaussianNoised(image, prob=0.1, std=math.sqrt(0.1)),
        T.RandGaussianSmoothd(image, sigma_x=(0.5, 1), sigma_y=(0.5, 1), prob=0.2),
        T.RandScaleIntensityd(image, factors=0.25, prob=0.15),
        T.RandScaleIntensityFixedMeand(image, factors=0.25, preserve_range=True, prob=0.15),
        T.RandSimulateLowResolutiond(
            image, prob=0.25, zoom_range=(0.5, 1), upsample_mode="bilinear"
        ),
        T.RandAdjustContrastd(
            image, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True
        ),
        T.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]  # fmt: skip
    if mirror:
        steps += [T.RandFlipd(("image", "mask"), prob=0.5, spatial_axis=axis) for axis in (0, 1)]
    return T.Compose(steps)


def augment(transform: Compose, images: Tensor, masks: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Each slice changed on its own.

    Args:
        transform: As `make_augmentation` gives it.
        images: [B, C, H, W].
        masks: [B, H, W] class indices.
        seed: Determines everything.
    """
    transform.set_random_state(seed=seed)
    pairs = [
        transform({"image": image, "mask": mask[None].float()})
        for image, mask in zip(images, masks, strict=True)
    ]
    changed = torch.stack([torch.as_tensor(pair["image"]) for pair in pairs])
    return changed, torch.stack([torch.as_tensor(pair["mask"])[0].long() for pair in pairs])
