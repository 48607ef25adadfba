"""What every network that turns undersampled k-space into images has in common.

Shapes: S slices, C coils, H readout, W phase encoding, h and w of the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from core_mri.models.registry import CoilMode, ReconstructorConfig


class Reconstructor(nn.Module, ABC):
    """``k-space [S, C, H, W], mask -> magnitude [S, h, w]``, in the scale of the data.

    Coil maps, scaling and cropping are the network's own.

    Attributes:
        config: What it was built from; a weights folder keeps it.
        coils: What k-space it was trained on.
        padding_measured: Whether lines that were never to be measured (beyond the limits that a
            header states) count as measured zeros in its mask. fastMRI's VarNet leaves them out.
    """

    config: ReconstructorConfig
    padding_measured: bool = True
    card: dict[str, Any]

    @property
    def coils(self) -> CoilMode:
        """What k-space it was trained on."""
        return self.config.coils

    @abstractmethod
    def images(
        self, kspace: Tensor, mask: Tensor, *, size: tuple[int, int], num_low: int = 0
    ) -> Tensor:
        """Magnitude images, with gradients.

        Args:
            kspace: Complex ``[S, C, H, W]``, zero where not measured.
            mask: Bool, measured points: ``[W]``, ``[H, W]`` or, each slice its own, ``[S, 1, 1 or
                H, W]``.
            size: Rows and columns of the image: the middle, at most H and W.
            num_low: Lines of the fully sampled center, where they are known; 0 finds them.

        Returns:
            ``[S, h, w]`` in the scale of `kspace`; zero for an empty slice.

        Raises:
            DataError: DATA-21 without the center that coil maps need.
            WeightsError: WEIGHTS-11 for an image too small for its poolings.
        """

    @torch.no_grad()
    def reconstruct(
        self, kspace: Tensor, mask: Tensor, *, size: tuple[int, int], num_low: int = 0
    ) -> Tensor:
        """As `images`, without gradients; in evaluation mode (``model.eval()``).

        Slices of any scale: each is brought near 1 by a power of two, which loses no digit.
        """
        peak = kspace.abs().amax((1, 2, 3))[:, None, None]
        exponent = torch.frexp(peak).exponent
        shrunk = kspace * torch.ldexp(torch.ones_like(peak), -exponent)[:, None]
        images = self.images(shrunk, mask, size=size, num_low=num_low)
        return images * torch.ldexp(torch.ones_like(peak), exponent)
