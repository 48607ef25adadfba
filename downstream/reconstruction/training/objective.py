"""The loss of a batch: supervised, by held-out samples, or both, for each kind of network.

Slices of one shape go through the network together. Slices of air are left out: they hold noise
alone, and a loss relative to their size would make the net fit it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.models.encoder import Encoder
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.unrolled import Encoded, Unrolled, encode, stacked, target_of
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.noise import noise_level
from core_mri.physics.preparation import center_crop
from downstream.reconstruction.training.batches import draw_lines, kept
from downstream.reconstruction.training.config import Loss, Undersampling
from downstream.reconstruction.training.losses.consistency import equivariance_loss, noise_loss
from downstream.reconstruction.training.losses.features import STARTS, feature_loss
from downstream.reconstruction.training.losses.holdout import holdout_loss, split
from downstream.reconstruction.training.losses.normalized import normalized_l1
from downstream.reconstruction.training.losses.supervised import supervised_loss
from downstream.reconstruction.training.slices import Slice

AIR = 10.0
"""Slices whose largest value is less than this many standard deviations of the noise are air."""


@dataclass(frozen=True)
class Sample:
    """A slice, what is left of it, and by what it is judged."""

    slice: Slice
    mask: Tensor
    """Bool ``[W]`` or ``[H, W]``."""
    labelled: bool
    """Whether its reference is used; else held-out samples are."""
    rng: np.random.Generator
    allowed: Tensor | None = None
    """Bool ``[H, W]``, points of the mask that training may use; None for all."""


@dataclass(frozen=True)
class Objective:
    """Losses of samples.

    Args:
        network: What is trained.
        loss: Weights and shares.
        undersampling: Of the second look of the equivariance loss.
        judge: Frozen encoder of the feature loss, or None.
    """

    network: Reconstructor
    loss: Loss
    undersampling: Undersampling
    judge: Encoder | None = None

    def __call__(self, samples: Sequence[Sample], progress: float) -> Tensor:
        """``[n]``, one a sample in any order; 0 for air.

        Args:
            samples: Of one batch.
            progress: Part of the training that is done.

        Raises:
            DataError: DATA-42 for a sample that should be labelled and has no reference.
        """
        groups: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.labelled and sample.slice.reference is None:
                raise DataError(
                    "DATA-42",
                    "a training slice has no fully sampled reference, which supervision needs.",
                    fix="Set supervision: self-supervised, or leave undersampled files out.",
                )
            shape = (*sample.slice.kspace.shape, *sample.slice.size, sample.labelled)
            if not is_air(kept(sample.slice.kspace, sample.mask), sample.mask):
                groups[shape].append(sample)
        losses = [self._group(group, progress) for group in groups.values()]
        found = torch.cat(losses) if losses else self._zeros(0)
        return torch.cat([found, self._zeros(len(samples) - len(found))])

    def _group(self, samples: list[Sample], progress: float) -> Tensor:
        if not isinstance(self.network, Unrolled):
            return self._magnitudes(samples)
        encoded = encoded_samples(samples).to(self._device)
        if samples[0].labelled:
            return self._labelled(samples, encoded, progress)
        return self._unlabelled(samples, encoded)

    def _labelled(self, samples: list[Sample], encoded: Encoded, progress: float) -> Tensor:
        image = self.network(encoded)
        everything = torch.stack([sample.slice.kspace for sample in samples])
        scale = encoded.scale[:, 0, 0]
        references, peaks = self._references(samples)
        reference = references / scale[:, None, None]
        magnitude = center_crop(image.abs(), samples[0].slice.size)
        target = target_of(encoded, everything.to(image.device))
        loss = supervised_loss(magnitude, reference, peaks / scale, image=image, target=target)
        if self.judge is not None and self.loss.feature_weight and progress >= STARTS:
            loss = loss + self.loss.feature_weight * feature_loss(self.judge, magnitude, reference)
        return loss

    def _unlabelled(self, samples: list[Sample], encoded: Encoded) -> Tensor:
        total = self._zeros(len(samples))
        image = None
        for _ in range(self.loss.splits):
            theta, held = self._split(samples, encoded)
            given = encoded.of(theta)
            image = self.network(given)
            total = total + holdout_loss(encoded, image, held) / self.loss.splits
        assert image is not None
        total = self.loss.holdout_weight * total
        noise, rng = self.loss.added_noise, samples[0].rng
        if self.loss.equivariance_weight:
            width = encoded.kspace.shape[-1]
            lines = [draw_lines(self.undersampling, width, sample.rng) for sample in samples]
            mask = torch.stack(lines)[:, None].to(self._device)
            total = total + self.loss.equivariance_weight * equivariance_loss(
                self.network, given, image, mask=mask, noise=noise, rng=rng
            )
        if self.loss.noise_weight:
            total = total + self.loss.noise_weight * noise_loss(
                self.network, given, image, noise=noise, rng=rng
            )
        return total

    def _split(self, samples: list[Sample], encoded: Encoded) -> tuple[Tensor, Tensor]:
        height = encoded.kspace.shape[-2]
        parts = [
            split(
                own if sample.allowed is None else own & sample.allowed.to(own.device),
                height,
                share=self.loss.holdout_share,
                selection=self.loss.holdout_selection,
                rng=sample.rng,
            )
            for own, sample in zip(encoded.mask, samples, strict=True)
        ]
        theta, held = (torch.stack(part).to(self._device) for part in zip(*parts, strict=True))
        return theta, held

    def _magnitudes(self, samples: list[Sample]) -> Tensor:
        """Networks that give no complex image: fastMRI's."""
        from core_mri.models.unet import Unet

        size = samples[0].slice.size
        device = self._device
        data = torch.stack([kept(s.slice.kspace, s.mask) for s in samples]).to(device)
        references, peaks = self._references(samples)
        if isinstance(self.network, Unet):
            zero_filled = root_sum_of_squares(center_crop(ifft2c(data), size), 1)
            return normalized_l1(self.network, zero_filled, references)
        images = [
            self.network.images(own[None], sample.mask.to(device), size=size)
            for own, sample in zip(data, samples, strict=True)
        ]
        return supervised_loss(torch.cat(images), references, peaks)

    def _references(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        found = [s.slice.reference for s in samples if s.slice.reference is not None]
        peaks = torch.tensor([s.slice.peak for s in samples])
        return torch.stack(found).to(self._device), peaks.to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _zeros(self, count: int) -> Tensor:
        return torch.zeros(count, device=self._device)


def encoded_samples(samples: Sequence[Sample]) -> Encoded:
    """One batch for an unrolled network, of samples of one shape."""
    return stacked([encode(kept(s.slice.kspace, s.mask), s.mask) for s in samples])


def is_air(kspace: Tensor, mask: Tensor) -> bool:
    """Whether a slice ``[C, H, W]`` shows nothing above the noise."""
    largest = root_sum_of_squares(ifft2c(kspace), 0).max()
    points = mask if mask.ndim > 1 else mask[None]
    density = points.float().mean().sqrt()  # undersampling lowers the noise of the image
    noise = noise_level(kspace, points).squeeze() * density * kspace.shape[0] ** 0.5
    return bool(largest <= AIR * noise) or not bool(largest > 0)
