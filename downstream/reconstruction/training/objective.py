"""The loss of a batch: supervised, by held-out samples, or both, for each kind of network.

Slices of one shape go through the network together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core_mri.models.encoder import Encoder
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.unrolled import Encoded, Unrolled, target_of
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.preparation import center_crop
from downstream.reconstruction.training.batches import draw_lines
from downstream.reconstruction.training.config import Loss, Undersampling
from downstream.reconstruction.training.groups import Group, Sample, grouped
from downstream.reconstruction.training.losses.consistency import equivariance_loss, noise_loss
from downstream.reconstruction.training.losses.features import STARTS, feature_loss
from downstream.reconstruction.training.losses.holdout import holdout_loss
from downstream.reconstruction.training.losses.normalized import normalized_l1
from downstream.reconstruction.training.losses.supervised import supervised_loss


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
            DataError: What `grouped` raises.
        """
        return self.losses(self.prepared(samples), len(samples), progress)

    def prepared(self, samples: Sequence[Sample]) -> list[Group]:
        """What can be done before the network is needed, on the CPU."""
        groups = grouped(samples, self.loss, encodes=isinstance(self.network, Unrolled))
        if self._device.type != "cuda":
            return groups
        # From pinned memory copies to the device wait for nothing.
        return [group.each(Tensor.pin_memory) for group in groups]

    def losses(self, groups: Sequence[Group], count: int, progress: float) -> Tensor:
        """As `__call__`, of `count` samples of which `groups` is left."""
        device = self._device
        moved = [group.each(lambda t: t.to(device, non_blocking=True)) for group in groups]
        losses = [self._group(group, progress) for group in moved]
        found = torch.cat(losses) if losses else self._zeros(0)
        return torch.cat([found, self._zeros(count - len(found))])

    def _group(self, group: Group, progress: float) -> Tensor:
        if group.encoded is None:
            return self._magnitudes(group)
        if group.labelled:
            return self._labelled(group, group.encoded, progress)
        return self._unlabelled(group, group.encoded)

    def _labelled(self, group: Group, encoded: Encoded, progress: float) -> Tensor:
        assert group.references is not None
        image = self.network(encoded)
        scale = encoded.scale[:, 0, 0]
        reference = group.references / scale[:, None, None]
        magnitude = center_crop(image.abs(), group.size)
        target = target_of(encoded, group.kspace)
        loss = supervised_loss(
            magnitude, reference, group.peaks / scale, image=image, target=target
        )
        if self.judge is not None and self.loss.feature_weight and progress >= STARTS:
            loss = loss + self.loss.feature_weight * feature_loss(self.judge, magnitude, reference)
        return loss

    def _unlabelled(self, group: Group, encoded: Encoded) -> Tensor:
        samples = group.samples
        total = self._zeros(len(samples))
        image = None
        for theta, held in group.splits:
            given = encoded.of(theta)
            image = self.network(given)
            total = total + holdout_loss(encoded, image, held) / len(group.splits)
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

    def _magnitudes(self, group: Group) -> Tensor:
        """Networks that give no complex image: fastMRI's."""
        from core_mri.models.unet import Unet

        assert group.references is not None
        if isinstance(self.network, Unet):
            zero_filled = root_sum_of_squares(center_crop(ifft2c(group.kspace), group.size), 1)
            return normalized_l1(self.network, zero_filled, group.references)
        images = [
            self.network.images(own[None], mask, size=group.size, num_low=num_low)
            for own, mask, num_low in zip(group.kspace, group.masks, group.num_low, strict=True)
        ]
        return supervised_loss(torch.cat(images), group.references, group.peaks)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _zeros(self, count: int) -> Tensor:
        return torch.zeros(count, device=self._device)
