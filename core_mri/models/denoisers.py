"""What an unrolled network learns: the change of a complex image that makes it a likelier one.

Both nets take the real and imaginary part as two channels and end in a convolution that is zero at
first, so that an untrained one changes nothing. They have no normalization: images come scaled to a
largest value of about 1, and statistics of a blank slice would be a division by zero.

Shape letters: ``B`` batch, ``H W`` image, ``K`` channels of the deepest level, ``h w`` its grid.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

RESIDUAL_SCALE = 0.1
"""Of each block of `ComplexResNet`, as in SSDU (Yaman et al., MRM 84 (2020))."""


SLOPE = 0.2
"""Of the leaky ReLU below zero."""


class Modulation(NamedTuple):
    """What is known beside the image, for the deepest level: ``u (1 + scale) + shift + field``."""

    scale: Tensor
    """``[B, K]``."""
    shift: Tensor
    """``[B, K]``."""
    field: Tensor | None = None
    """``[B, K, a, b]`` on a grid of its own, interpolated; None adds nothing."""


class ComplexUNet(nn.Module):
    """A small U-Net (Ronneberger et al., arXiv 1505.04597).

    Args:
        channels: Of the first level; they double with each.
        num_pools: Levels below the first.
    """

    def __init__(self, channels: int, num_pools: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(num_pools + 1)]
        self.num_pools = num_pools
        self.down = nn.ModuleList(
            _convolutions(before, after)
            for before, after in zip([2, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = _convolutions(widths[-2], widths[-1])
        self.expand = nn.ModuleList(
            nn.ConvTranspose2d(after, before, 2, stride=2) for before, after in pairwise(widths)
        )
        self.up = nn.ModuleList(_convolutions(2 * width, width) for width in widths[:-1])
        self.last = nn.Conv2d(channels, 2, 1)
        _start(self)

    @property
    def deepest(self) -> int:
        """K."""
        return self.last.in_channels * 2**self.num_pools

    def forward(self, image: Tensor, modulation: Modulation) -> Tensor:
        """The change, complex ``[B, H, W]``, of an image ``[B, H, W]``."""
        height, width = image.shape[-2:]
        step = 2**self.num_pools
        x = functional.pad(_channels(image), (0, -width % step, 0, -height % step))
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = functional.avg_pool2d(x, 2)
        x = _modulated(self.bottom(x), modulation)
        for expand, block, skip in zip(
            reversed(self.expand), reversed(self.up), reversed(skipped), strict=True
        ):
            x = block(torch.cat([expand(x), skip], 1))
        return _complex(self.last(x)[..., :height, :width], image)


class ComplexResNet(nn.Module):
    """Residual blocks at full resolution, as SSDU uses them: 15 of 64 channels.

    Source: Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks
    without fully sampled reference data, MRM 84 (2020).

    Args:
        channels: Of every convolution.
        num_blocks: Blocks ``x + 0.1 conv(relu(conv(x)))``.
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(num_blocks)
        )
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 2, 3, padding=1)
        _start(self)

    @property
    def deepest(self) -> int:
        """K; there is one level only."""
        return self.last.in_channels

    def forward(self, image: Tensor, modulation: Modulation) -> Tensor:
        """The change, complex ``[B, H, W]``, of an image ``[B, H, W]``."""
        first = _modulated(self.first(_channels(image)), modulation)
        x = first
        for block in self.blocks:
            x = x + RESIDUAL_SCALE * block(x)
        return _complex(self.last(self.middle(x) + first), image)


def _convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def _modulated(x: Tensor, modulation: Modulation) -> Tensor:
    x = x * (1 + modulation.scale[..., None, None]) + modulation.shift[..., None, None]
    if modulation.field is None:
        return x
    return x + functional.interpolate(
        modulation.field, x.shape[-2:], mode="bilinear", align_corners=False
    )


def _start(network: ComplexUNet | ComplexResNet) -> None:
    """Activations keep their size from layer to layer (He et al., arXiv 1502.01852); then zero.

    torch's own start shrinks them, which no normalization makes good here.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, SLOPE)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.zeros_(network.last.weight)


def _channels(image: Tensor) -> Tensor:
    parts = torch.stack([image.real, image.imag], 1)
    if parts.device.type != "cpu":
        return parts
    # Convolutions of a CPU would bring each layer into this order and back.
    return parts.contiguous(memory_format=torch.channels_last)


def _complex(channels: Tensor, like: Tensor) -> Tensor:
    """In the precision of an image; convolutions under autocast give less."""
    channels = channels.to(like.real.dtype)
    return torch.complex(channels[:, 0], channels[:, 1])
