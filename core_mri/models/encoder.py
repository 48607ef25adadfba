"""The encoder: a plain ViT from timm on single-channel slices.

Shapes: B images, H and W pixels, h = H / patch_size, w = W / patch_size, D = embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core_mri.errors import ConfigError, DataError
from core_mri.models.registry import EncoderConfig


class Features(NamedTuple):
    """What the encoder says about a batch of images."""

    cls: Tensor
    """[B, D], the class token after the last norm; with ``pool: mean`` the mean of `patches`."""
    patches: Tensor
    """[B, h, w, D], the patch tokens after the last norm."""


class Encoder(nn.Module):
    """ViT encoder ``images -> Features``; normalisation of intensities is the model's own.

    Args:
        config: Sizes and input contract.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.config = config
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=1,
            num_classes=0,
            global_pool="",
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            reg_tokens=config.num_registers,
            init_values=config.layer_scale or None,
            drop_path_rate=config.drop_path,
            dynamic_img_size=True,
        )
        self.mask_token = nn.Parameter(torch.zeros(config.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.config.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """Encode images.

        Args:
            images: [B, 1 or 3, H, W] in [0, 1]; three channels are averaged. H and W are multiples
                of the patch size.
            mask: Bool [B, h, w]; masked patches are replaced by the learned mask token before the
                positions are added (iBOT, Zhou et al., arXiv 2111.07832).

        Raises:
            ConfigError: CONFIG-05 when a side is no multiple of the patch size.
            DataError: DATA-03 when there are neither 1 nor 3 channels.
        """
        tokens, grid = self.embed(images, mask)
        for block in self.vit.blocks:
            tokens = block(tokens)
        return self._split(self.vit.norm(tokens), grid)

    def intermediates(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Normalised patch tokens [B, h, w, D] after each block of `depths` (0-based, or negative).

        Raises:
            ConfigError: CONFIG-05 when a depth does not exist.
        """
        wanted = [depth % self.depth for depth in depths if -self.depth <= depth < self.depth]
        if len(wanted) != len(depths):
            raise ConfigError(
                "CONFIG-05",
                f"depths {list(depths)} must lie in [{-self.depth}, {self.depth}).",
            )
        tokens, grid = self.embed(images, None)
        kept: dict[int, Tensor] = {}
        for depth, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if depth in wanted:
                kept[depth] = self._split(self.vit.norm(tokens), grid).patches
        return [kept[depth] for depth in wanted]

    def embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B, N, D] before the first block: class, registers, patches, with positions.

        Args:
            images: As in `forward`.
            mask: As in `forward`.

        Returns:
            The tokens and the grid (h, w); N = prefix tokens + h * w.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                "DATA-03",
                f"images must be [B, 1 or 3, H, W], got {list(images.shape)}.",
            )
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"image sides must be multiples of the patch size {self.patch_size}, "
                f"got {height}x{width}.",
                fix="Pad or resize first (core_mri.preprocess does).",
            )
        if images.shape[1] == 3:
            images = images.mean(1, keepdim=True)
        patches = self.vit.patch_embed(
            (images - self.config.mean) / self.config.std
        )  # [B, h, w, D]
        grid = (int(patches.shape[1]), int(patches.shape[2]))
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        return self.vit._pos_embed(patches), grid

    def _split(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        patches = tokens[:, self.vit.num_prefix_tokens :]
        cls = tokens[:, 0] if self.config.pool == "token" else patches.mean(1)
        return Features(cls, patches.unflatten(1, grid))
