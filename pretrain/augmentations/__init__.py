"""How the intensities of views are changed: as other scanners, coils and settings would.

Every change is drawn for each view from its own uniform numbers, so a view depends neither on the
other views of a batch nor on which of them are changed. The order is that of a scan: contrast of
the tissue, coils, k-space, noise, filters of the console, window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core_mri.physics.bias_field import NUM_COEFFICIENTS, apply_bias, bias_field
from core_mri.physics.blur import gaussian_blur, kernel_radius, sharpen
from core_mri.physics.low_field import low_field
from core_mri.physics.rician import rician_noise
from core_mri.physics.ringing import ringing
from pretrain.augmentations.gamma import adjust_gamma
from pretrain.augmentations.undersampling import draw_lines, zero_filled
from pretrain.augmentations.window import adjust_brightness, adjust_contrast
from pretrain.config_views import ViewsConfig
from pretrain.crops import Floats, between, log_between


class Augmentation(NamedTuple):
    """One change: how often, and what it does to views [N, S, S] with uniform numbers [N, D]."""

    probability: str
    """Field of `ViewsConfig`."""
    num_draws: int
    """D."""
    apply: Callable[[Tensor, Floats, ViewsConfig], Tensor]


def augment(images: Tensor, uniform: Floats, config: ViewsConfig) -> None:
    """Change views in place.

    Args:
        images: Float32 [N, S, S] in [0, 1], and so they stay.
        uniform: [N, NUM_DRAWS] in [0, 1), on the CPU.
        config: Probabilities and ranges.
    """
    first = 0
    for augmentation in AUGMENTATIONS.values():
        own = uniform[:, first : first + 1 + augmentation.num_draws]
        first += 1 + augmentation.num_draws
        chosen = np.flatnonzero(own[:, 0] < getattr(config, augmentation.probability))
        if len(chosen):
            rows = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            changed = augmentation.apply(images[rows], own[chosen, 1:], config)
            images[rows] = changed.clamp_(0, 1)
    images.clamp_(0, 1)


def _gamma(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    return adjust_gamma(images, _each(images, log_between(config.gamma, uniform[:, 0])))


def _bias(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    ratio = _each(images, log_between(config.bias_ratio, uniform[:, 0]))
    coefficients = _each(images, 2 * uniform[:, 1:] - 1)[:, 0]
    return apply_bias(images, bias_field(coefficients, ratio, images.shape[-1]))


def _low_field(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    return low_field(
        images,
        _each(images, between(config.low_field_resolution, uniform[:, 0])),
        _each(images, between(config.low_field_noise, uniform[:, 1])) * _level(images),
        _seeds(uniform[:, 2]),
    )


def _ringing(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    return ringing(images, _each(images, between(config.ringing_kept, uniform)).mT)


def _undersampling(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    lines = draw_lines(
        images.shape[-1],
        log_between(config.undersampling_acceleration, uniform[:, 0]),
        config.undersampling_center,
        random=uniform[:, 1] < 0.5,
        seeds=_seeds(uniform[:, 2]),
    )
    along_rows = _each(images, uniform[:, 3]) < 0.5
    return zero_filled(images, lines.to(images.device, non_blocking=True), along_rows).abs()


def _noise(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    sigma = _each(images, between(config.noise_sigma, uniform[:, 0]))
    return rician_noise(images, sigma * _level(images), _seeds(uniform[:, 1]))


def _blur(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    sigma = _each(images, log_between(config.blur_sigma_px, uniform[:, 0]))
    return gaussian_blur(images, sigma, kernel_radius(config.blur_sigma_px[1]))


def _sharpen(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    return sharpen(images, _each(images, between(config.sharpen_amount, uniform[:, 0])))


def _window(images: Tensor, uniform: Floats, config: ViewsConfig) -> Tensor:
    brightness, contrast = (
        _each(images, between((1 - largest, 1 + largest), uniform[:, column]))
        for column, largest in enumerate((config.brightness, config.contrast))
    )
    return adjust_contrast(adjust_brightness(images, brightness), contrast)


AUGMENTATIONS = {
    "gamma": Augmentation("gamma_probability", 1, _gamma),
    "bias field": Augmentation("bias_probability", 1 + NUM_COEFFICIENTS, _bias),
    "low field": Augmentation("low_field_probability", 3, _low_field),
    "ringing": Augmentation("ringing_probability", 2, _ringing),
    "undersampling": Augmentation("undersampling_probability", 4, _undersampling),
    "noise": Augmentation("noise_probability", 2, _noise),
    "blur": Augmentation("blur_probability", 1, _blur),
    "sharpen": Augmentation("sharpen_probability", 1, _sharpen),
    "window": Augmentation("contrast_probability", 2, _window),
}
"""By name, in the order in which they are applied."""
NUM_DRAWS = sum(1 + augmentation.num_draws for augmentation in AUGMENTATIONS.values())
"""Uniform numbers that a view takes."""


def _each(images: Tensor, values: Floats) -> Tensor:
    """[N] or [N, P] numbers as float32 [N, 1, 1] or [N, 1, P] beside the images."""
    column = torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)
    return column.view(len(images), 1, -1)


def _level(images: Tensor) -> Tensor:
    """Root mean square of each view: noise of one level would drown pictures of dark tissue."""
    return images.square().mean((-2, -1), keepdim=True).sqrt()


def _seeds(uniform: Floats) -> list[int]:
    return [int(value) for value in uniform * 2**32]
