"""fastMRI's U-Net: image to image, and from the zero-filled image to a reconstruction.

Names of tensors, order of operations and initial weights are those of facebookresearch/fastMRI
(`fastmri/models/unet.py`), so that its checkpoints load as they are. Sources: Ronneberger et al.,
arXiv 1505.04597; Zbontar et al., arXiv 1811.08839.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import WeightsError
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.registry import UnetConfig
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.preparation import CLAMP, INSTANCE_EPS, center_crop

SLOPE = 0.2
"""Of the leaky ReLU below zero."""
NORM_EPS = 1e-5
"""Added to the variance by the instance norm."""


class Unet(Reconstructor):
    """``images [B, I, H, W] -> [B, O, H, W]``, any sides that leave two pixels at the bottom.

    Args:
        config: Sizes.
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config: UnetConfig = config
        widths = [config.channels * 2**level for level in range(config.pools + 1)]
        down = [config.in_channels, *widths]
        blocks = [ConvBlock(i, o, config.dropout) for i, o in pairwise(down)]
        self.down_sample_layers = nn.ModuleList(blocks[:-1])
        self.conv = blocks[-1]
        self.up_transpose_conv = nn.ModuleList(UpBlock(2 * o, o) for o in widths[-2::-1])
        ups: list[nn.Module] = [ConvBlock(2 * o, o, config.dropout) for o in widths[-2::-1]]
        ups[-1] = nn.Sequential(ups[-1], nn.Conv2d(config.channels, config.out_channels, 1))
        self.up_conv = nn.ModuleList(ups)

    def forward(self, images: Tensor) -> Tensor:
        """The network alone; normalisation is the caller's (`images` does it).

        Args:
            images: ``[B, I, H, W]``, normalised: mean 0, standard deviation 1.

        Returns:
            ``[B, O, H, W]``.

        Raises:
            WeightsError: WEIGHTS-11 for another number of channels, or too small an image.
        """
        self._check(images)
        skips = []
        x = images
        for block in self.down_sample_layers:
            x = block(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.conv(x)
        for up, block in zip(self.up_transpose_conv, self.up_conv, strict=True):
            skip = skips.pop()
            x = up(x)
            missing = (skip.shape[-1] - x.shape[-1], skip.shape[-2] - x.shape[-2])
            if any(missing):  # a side was odd
                x = functional.pad(x, (0, missing[0], 0, missing[1]), "reflect")
            x = block(torch.cat([x, skip], 1))
        return x

    def images(
        self,
        kspace: Tensor,
        mask: Tensor,
        *,
        size: tuple[int, int],
        num_low: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """The chain of fastMRI: zero-filled magnitude, cropped, normalised, cut to +-6, and back.

            r = sqrt(sum_c |crop F^-1 y_c|^2),   x = net( clamp((r - mean) / std) ) * std + mean

        Mean and standard deviation are those of each slice; air may come out slightly negative.
        Arguments as in `Reconstructor`; `num_low` has no effect.
        """
        if (self.config.in_channels, self.config.out_channels) != (1, 1):
            raise WeightsError(
                "WEIGHTS-11",
                f"a U-Net of {self.config.in_channels} to {self.config.out_channels} channels does "
                "not reconstruct magnitudes, one to one does.",
            )
        zero_filled = root_sum_of_squares(center_crop(ifft2c(kspace * mask), size), 1)
        mean = zero_filled.mean((1, 2), keepdim=True)
        std = zero_filled.std((1, 2), keepdim=True)
        normalized = (zero_filled - mean) / (std + INSTANCE_EPS)
        refined = self(normalized.clamp(-CLAMP, CLAMP)[:, None])[:, 0]
        return refined * std + mean

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise WeightsError(
                "WEIGHTS-11",
                f"this U-Net takes [B, {self.config.in_channels}, H, W], got {list(images.shape)}.",
            )
        height, width = (side >> self.config.pools for side in images.shape[-2:])
        if height * width < 2:
            raise WeightsError(
                "WEIGHTS-11",
                f"an image of {images.shape[-2]}x{images.shape[-1]} pixels is too small for "
                f"{self.config.pools} poolings, of which two pixels must be left.",
            )


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, instance norm, leaky ReLU, dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleDict(  # numbers of fastMRI's nn.Sequential
            {
                "0": nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                "4": nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, I, H, W]`` to ``[B, O, H, W]``."""
        for convolution in self.layers.values():
            x = _activate(_convolve(x, cast("nn.Conv2d", convolution).weight))
            if self.dropout:
                x = functional.dropout2d(x, self.dropout, self.training)
        return x


class UpBlock(nn.Module):
    """Transposed 2x2 convolution of stride 2, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {"0": nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, I, H, W]`` to ``[B, O, 2 H, 2 W]``."""
        return _activate(self.layers["0"](x))


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution that keeps the sides.

    On a CPU in the layout in which few channels are two to three times as fast; there is no fast
    kernel for a single one, so that it gets a second one of zeros.
    """
    if x.device.type == "cpu":
        if x.shape[1] == 1:
            x = torch.cat([x, torch.zeros_like(x)], 1)
            weight = functional.pad(weight, (0, 0, 0, 0, 0, 1))
        x = x.contiguous(memory_format=torch.channels_last)
    return functional.conv2d(x, weight, padding=1)


def _activate(x: Tensor) -> Tensor:
    """Instance norm without learned scale, then leaky ReLU; overwrites its input.

        y = (x - mean) / sqrt(var + eps),   var = mean((x - mean)^2)   over the pixels of a channel

    On a CPU the formula is faster than `instance_norm`, whose kernel wants another layout;
    `group_norm` would be as fast, but takes E[x^2] - mean^2, which loses digits.
    """
    if x.device.type != "cpu":
        return functional.leaky_relu(functional.instance_norm(x), SLOPE, inplace=True)
    centered = x.sub_(x.mean((2, 3), keepdim=True))
    scale = (centered.square().mean((2, 3), keepdim=True) + NORM_EPS).rsqrt()
    normalized = centered * scale if torch.is_grad_enabled() else centered.mul_(scale)
    return functional.leaky_relu(normalized, SLOPE, inplace=True)
