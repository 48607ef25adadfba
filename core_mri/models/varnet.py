"""End-to-end variational network (Sriram et al., MICCAI 2020, arXiv 2004.06688).

    k <- k - w M (k - y) - F S N(S^H F^-1 k),   in the end  x = sqrt(sum_c |F^-1 k_c|^2)

with a learned w and U-Net N in each of the cascades; another U-Net finds the coil maps S from the
center of y. Names of tensors and values are those of facebookresearch/fastMRI
(`fastmri/models/varnet.py`), so that its checkpoints load as they are.

What is computed differs, for speed: where the mask is one of whole lines, everything but F along
the lines commutes with M, so k is kept transformed along the readout once; and it is kept in the
order of the plain FFT, so that shifts are those of one image, not of all coils.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import DataError
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.registry import UnetConfig, VarNetConfig
from core_mri.models.unet import Unet
from core_mri.physics.coils import coil_combine, coil_expand, root_sum_of_squares
from core_mri.physics.fourier import ifft2c, ifftnc
from core_mri.physics.masks import center_lines
from core_mri.physics.preparation import center_crop
from core_mri.physics.sensitivity import MIN_LINES

MULTIPLE = 16
"""Images are padded with zeros to multiples of this, whatever the poolings."""


class VarNet(Reconstructor):
    """``k-space [S, C, H, W] -> magnitude [S, H, W]``.

    Args:
        config: Sizes.
    """

    padding_measured = False

    def __init__(self, config: VarNetConfig) -> None:
        super().__init__()
        self.config: VarNetConfig = config
        self.sens_net = MapsNet(config.map_channels, config.map_pools)
        self.cascades = nn.ModuleList(
            Cascade(config.channels, config.pools) for _ in range(config.cascades)
        )

    def forward(self, kspace: Tensor, mask: Tensor, num_low: int = 0) -> Tensor:
        """Root sum of squares of all coils, ``[S, H, W]``; arguments as in `Reconstructor`."""
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        kspace = kspace * mask
        maps = self.sens_net(kspace, mask, num_low)
        lines_only = mask.shape[-2] == 1
        axes = (-1,) if lines_only else (-2, -1)
        measured = ifftnc(kspace, (-2,)) if lines_only else kspace
        measured, mask, maps = (torch.fft.ifftshift(x, axes) for x in (measured, mask, maps))
        current = measured
        for cascade in self.steps():
            coils = torch.fft.ifftn(current, dim=axes, norm="ortho")
            image = torch.fft.fftshift(coil_combine(coils, maps), axes)
            refined = torch.fft.ifftshift(cascade.model(image[:, None])[:, 0], axes)
            change = torch.fft.fftn(coil_expand(refined, maps), dim=axes, norm="ortho")
            kept = 1 - cascade.dc_weight * mask
            current = current * kept + measured * (cascade.dc_weight * mask) - change
        coils = torch.fft.ifftn(current, dim=axes, norm="ortho")
        return torch.fft.fftshift(root_sum_of_squares(coils, 1), axes)

    def steps(self) -> Iterator[Cascade]:
        """The cascades in their order."""
        for cascade in self.cascades:
            yield cast("Cascade", cascade)

    def images(
        self, kspace: Tensor, mask: Tensor, *, size: tuple[int, int], num_low: int = 0
    ) -> Tensor:
        """The middle of `forward`; arguments as in `Reconstructor`."""
        return center_crop(self(kspace, mask, num_low), size)


class Cascade(nn.Module):
    """One step: the weight of data consistency and the U-Net."""

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.model = NormUnet(channels, pools)
        self.dc_weight = nn.Parameter(torch.ones(1))


class MapsNet(nn.Module):
    """Coil maps from the center lines of k-space, a U-Net for one coil image at a time."""

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.norm_unet = NormUnet(channels, pools)

    def forward(self, kspace: Tensor, mask: Tensor, num_low: int) -> Tensor:
        """Maps ``[S, C, H, W]``, ``sum_c |S_c|^2`` 1 or, where nothing is left, 0.

        Args:
            kspace: Complex ``[S, C, H, W]``.
            mask: ``[S or 1, 1, H or 1, W]``.
            num_low: Lines of the center; 0 finds them in the mask.

        Raises:
            DataError: DATA-21 for fewer than `MIN_LINES` lines.
        """
        low = ifft2c(kspace * _center(mask, num_low))
        # One at a time they stay in the cache of a CPU.
        stack = low.flatten(0, 1)[:, None]
        parts = stack.split(1) if stack.device.type == "cpu" else (stack,)
        coils = torch.cat([self.norm_unet(part) for part in parts]).view_as(low)
        norm = root_sum_of_squares(coils, 1)[:, None]
        return coils / torch.where(norm > 0, norm, 1)


class NormUnet(nn.Module):
    """A U-Net on real and imaginary part, each normalised by its own mean and deviation."""

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        sizes = UnetConfig(channels=channels, pools=pools, in_channels=2, out_channels=2)
        self.unet = Unet(sizes)

    def forward(self, image: Tensor) -> Tensor:
        """Complex ``[B, 1, H, W]`` to the same."""
        parts = torch.view_as_real(image[:, 0]).movedim(-1, 1)  # [B, 2, H, W]
        mean, std = parts.mean((2, 3), keepdim=True), parts.std((2, 3), keepdim=True)
        normalized = (parts - mean) / torch.where(std > 0, std, 1)
        height, width = image.shape[-2:]
        rows, columns = -height % MULTIPLE, -width % MULTIPLE
        top, left = rows // 2, columns // 2
        padded = functional.pad(normalized, (left, columns - left, top, rows - top))
        refined = self.unet(padded)[..., top : top + height, left : left + width]
        return torch.view_as_complex((refined * std + mean).movedim(1, -1).contiguous())[:, None]


def _center(mask: Tensor, num_low: int) -> Tensor:
    """Bool ``[S or 1, 1, 1, W]``: lines of the center, from ``(W - n + 1) // 2`` on."""
    width = mask.shape[-1]
    lines = torch.arange(width, device=mask.device)
    centers = []
    whole = mask.all(-2).reshape(-1, width)
    numbers = [num_low] * len(whole) if num_low else [center_lines(one) for one in whole.cpu()]
    for number in numbers:
        if number < MIN_LINES:
            raise DataError(
                "DATA-21",
                f"whole lines sampled in the center of k-space: {number}; these weights find the "
                f"coils from at least {MIN_LINES}.",
                fix="Use zero-filled, a U-Net, or a mask with a fully sampled center.",
            )
        first = (width - number + 1) // 2
        centers.append((lines >= first) & (lines < first + number))
    return torch.stack(centers)[:, None, None]
