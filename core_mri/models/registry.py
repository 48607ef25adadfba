"""Encoder sizes by name; plain data, so listing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core_mri.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that determines the tensors and the input contract of an encoder."""

    embed_dim: int
    """Width of a token, D."""
    depth: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads; divides `embed_dim`."""
    patch_size: int
    """Side of a square patch, pixels."""
    image_size: int = 224
    """Side for which the position table is stored, pixels; other sizes resample it."""
    num_registers: int = 0
    """Register tokens (Darcet et al., arXiv 2309.16588)."""
    layer_scale: float = 0.0
    """Initial value of LayerScale (Touvron et al., arXiv 2103.17239); 0 leaves it out.

    DINOv2 starts at 1e-5. Then the class token of random weights hardly sees the image, which makes
    a random-initialised twin worse than it need be and short runs slow to start."""
    pool: Literal["token", "mean"] = "token"
    """What stands for the whole image: the class token, or the mean of the patch tokens, where
    nothing trained the class token (I-JEPA)."""
    drop_path: float = 0.0
    """Stochastic depth rate, uniform over blocks."""
    mean: float = 0.25
    """Mean subtracted from an image in [0, 1]."""
    std: float = 0.25
    """Standard deviation that divides it."""

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                "CONFIG-05",
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}.",
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.",
            )


MODELS: dict[str, EncoderConfig] = {
    "vit_micro_patch8": EncoderConfig(
        embed_dim=128, depth=4, num_heads=4, patch_size=8, image_size=64
    ),
    "vit_tiny_patch8": EncoderConfig(
        embed_dim=192, depth=12, num_heads=3, patch_size=8, image_size=96
    ),
    "vit_tiny_patch16": EncoderConfig(embed_dim=192, depth=12, num_heads=3, patch_size=16),
    "vit_small_patch16": EncoderConfig(embed_dim=384, depth=12, num_heads=6, patch_size=16),
    "vit_base_patch16": EncoderConfig(embed_dim=768, depth=12, num_heads=12, patch_size=16),
    "vit_large_patch16": EncoderConfig(embed_dim=1024, depth=24, num_heads=16, patch_size=16),
}
"""Plain ViTs (Dosovitskiy et al., arXiv 2010.11929); sizes as in DeiT and DINOv2, plus micro."""
