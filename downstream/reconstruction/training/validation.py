"""How good a network is on fixed slices of validation patients, between steps.

``holdout`` needs no reference: a fifth of the measured points is kept back, and the score is minus
the loss of their prediction. ``reference`` is the mean SSIM.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.unrolled import Unrolled
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.preparation import center_crop
from core_mri.physics.residual import magnitude_residual
from core_mri.physics.sensitivity import calibration_region
from downstream.reconstruction.training.batches import fixed_lines, kept
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.groups import Sample, encoded_samples, is_air
from downstream.reconstruction.training.losses.holdout import holdout_loss, split
from downstream.reconstruction.training.losses.supervised import ssim
from downstream.reconstruction.training.slices import Slice, Slices

SHARE = 0.2
_DRAW, _GAMMA = 3, 4


class Look(NamedTuple):
    """What validation sees of a network."""

    score: float
    """Higher is better."""
    residual: float
    """``||A x - y|| / ||y||`` of the measured samples (`core_mri.physics.magnitude_residual`); nan
    without the center that coil maps need."""
    zero_filled: float
    """The same of the zero-filled image."""


class Validation:
    """Fixed slices, spread evenly over the patients and the accelerations; read anew at every look.

    Args:
        slices: Of validation patients.
        config: How many, at which accelerations, by what.
    """

    def __init__(self, slices: Slices, config: ReconstructionConfig) -> None:
        self.slices, self.config = slices, config
        count = min(config.fitting.num_validation, len(slices))
        positions = np.linspace(0, len(slices) - 1, count).round().astype(int)
        self.positions = positions.tolist()

    @torch.no_grad()
    def look(self, network: Reconstructor) -> Look:
        """Means over the slices that show something.

        Raises:
            DataError: DATA-42 when a reference is needed and there is none, DATA-09 when all slices
                are air.
        """
        scores, own, others = [], [], []
        for number in range(len(self.positions)):
            sample = self.sample(number)
            data = kept(sample.slice.kspace, sample.mask)
            if is_air(data, sample.mask):
                continue
            if self.config.fitting.validate_by == "holdout":
                assert isinstance(network, Unrolled)
                score, image = self._holdout(network, sample)
            else:
                score, image = self._similarity(network, sample)
            scores.append(score)
            zero_filled = center_crop(root_sum_of_squares(ifft2c(data), 0), sample.slice.size)
            own.append(_residual(data, sample.mask, image.cpu()))
            others.append(_residual(data, sample.mask, zero_filled))
        if not scores:
            raise DataError("DATA-09", "all validation slices are air.")
        return Look(float(np.mean(scores)), float(np.mean(own)), float(np.mean(others)))

    def sample(self, number: int) -> Sample:
        """Validation sample `number`, the same at every look."""
        config = self.config
        rng = np.random.default_rng((config.seed, _DRAW, number))
        own = self.slices.read(self.positions[number], rng)
        if config.supervision == "zero-shot":
            return zero_shot_sample(own, self.positions[number], config, rng)
        mask = own.mask
        if mask is None:
            choice = number % len(config.undersampling.accelerations)
            seed = (config.seed, _DRAW, number)
            mask = fixed_lines(config.undersampling, choice, own.kspace.shape[-1], seed)
        return Sample(own, mask, True, rng)

    def _holdout(self, network: Unrolled, sample: Sample) -> tuple[float, Tensor]:
        """Minus the loss, and the magnitude ``[h, w]`` in the scale of the data."""
        device = next(network.parameters()).device
        encoded = encoded_samples([sample]).to(device)
        if sample.allowed is None:
            theta, held = _fifth(encoded.mask[0].cpu(), encoded.kspace.shape[-2], sample.rng)
        else:
            theta = sample.allowed
            held = encoded.mask[0].cpu() & ~theta
        image = network(encoded.of(theta[None].to(device)))
        loss = holdout_loss(encoded, image, held[None].to(device))
        return -float(loss), center_crop(image.abs() * encoded.scale, sample.slice.size)[0]

    def _similarity(self, network: Reconstructor, sample: Sample) -> tuple[float, Tensor]:
        """SSIM, and the image ``[h, w]``."""
        own = sample.slice
        if own.reference is None:
            raise DataError(
                "DATA-42",
                "a validation slice has no fully sampled reference.",
                fix="Set fitting.validate_by: holdout.",
            )
        device = next(network.parameters()).device
        data = kept(own.kspace, sample.mask).to(device)[None]
        image = network.reconstruct(data, sample.mask.to(device), size=own.size)
        reference = center_crop(own.reference, own.size)[None].to(device)
        score = ssim(image, reference, torch.tensor([own.peak], device=device))
        return float(score), image[0]


def zero_shot_sample(
    own: Slice, position: int, config: ReconstructionConfig, rng: np.random.Generator
) -> Sample:
    """A slice of the one scan, without its stopping set Gamma: a fifth of the measured points.

    Gamma depends on seed and position alone, so training never sees what says when to stop. Source:
    Yaman et al., Zero-shot self-supervised learning for MRI reconstruction, ICLR 2022
    (arXiv:2102.07737).
    """
    height, width = own.kspace.shape[-2:]
    mask = own.mask
    if mask is None:
        mask = fixed_lines(config.undersampling, 0, width, (config.seed, _DRAW))
    points = mask if mask.ndim > 1 else mask[None]
    fixed = np.random.default_rng((config.seed, _GAMMA, position))
    return Sample(own, mask, False, rng, _fifth(points, height, fixed)[0])


def _residual(kspace: Tensor, mask: Tensor, magnitude: Tensor) -> float:
    points = mask if mask.ndim > 1 else mask[None]
    try:
        calibration_region(points[0] if len(points) == 1 else points, kspace.shape[-2])
    except ValueError:
        return float("nan")
    return float(magnitude_residual(kspace, mask, magnitude.clamp_min(0)))


def _fifth(mask: Tensor, height: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return split(mask, height, share=SHARE, selection="uniform", rng=rng)
