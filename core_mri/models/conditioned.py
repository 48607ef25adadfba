"""A pretrained encoder inside an unrolled network: it looks once, at the warm start.

The encoder E sees the magnitude of the warm start; patch tokens of several depths, side by side,
are projected for every denoiser to

    field            [K, h, w], added to the deepest level of the denoiser on its grid
    scale, shift     [K] each, of the mean token, which multiply and move that level

each times a learned gate of K numbers that are zero at first, so that training starts exactly at
the network without encoder. Running E once, not once a step, keeps the cost at one pass of a ViT.

Shape letters: ``S`` slices, ``H W`` pixels, ``h w`` patches, ``D`` width of a token, ``K`` channels
of the deepest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.models.denoisers import Modulation
from core_mri.models.encoder import Encoder

WINDOW = 0.995
"""Quantile of the magnitude that becomes white, as the encoder's images were windowed."""


class Context(nn.Module):
    """Encoder, projections and gates.

    Args:
        encoder: Pretrained, or random.
        depths: Its blocks whose patch tokens are read.
        channels: K.
        num_denoisers: Each has projections and gates of its own.
    """

    def __init__(
        self, encoder: Encoder, *, depths: Sequence[int], channels: int, num_denoisers: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.depths = tuple(depths)
        width = len(self.depths) * encoder.embed_dim
        self.fields = nn.ModuleList(nn.Linear(width, channels) for _ in range(num_denoisers))
        self.films = nn.ModuleList(nn.Linear(width, 2 * channels) for _ in range(num_denoisers))
        self.gates = nn.Parameter(torch.zeros(num_denoisers, 3, channels))

    def forward(self, magnitude: Tensor) -> Tensor:
        """Tokens of all depths side by side, ``[S, h, w, depths D]``.

        Args:
            magnitude: ``[S, H, W]``, not negative, any scale.
        """
        tokens = self.encoder.intermediates(as_images(magnitude, self.encoder), self.depths)
        return torch.cat(tokens, -1)

    def modulations(self, tokens: Tensor) -> list[Modulation]:
        """What each denoiser is told, one after the other."""
        told = []
        for field, film, gates in zip(self.fields, self.films, self.gates, strict=True):
            scale, shift = film(tokens.mean((1, 2))).chunk(2, -1)
            grid = field(tokens).movedim(-1, 1) * gates[2, :, None, None]
            told.append(Modulation(gates[0] * scale, gates[1] * shift, grid))
        return told


def as_images(magnitude: Tensor, encoder: Encoder) -> Tensor:
    """Magnitudes as the encoder wants images: [0, 1], sides that are multiples of its patches.

    Args:
        magnitude: ``[S, H, W]``.
        encoder: Says how large a patch is.

    Returns:
        ``[S, 1, H', W']``, padded with black at the right and the bottom.
    """
    white = torch.quantile(magnitude.flatten(1).float(), WINDOW, dim=1).clamp_min(1e-6)
    images = (magnitude / white[:, None, None]).clamp(0, 1)[:, None]
    height, width = magnitude.shape[-2:]
    patch = encoder.patch_size
    return functional.pad(images, (0, -width % patch, 0, -height % patch))
