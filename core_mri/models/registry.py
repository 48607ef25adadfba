"""Sizes of networks by name; plain data, so listing them loads no torch."""

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
    class_token: bool = True
    """Whether there is a class token; without one (I-JEPA) `pool` must be ``mean``."""
    positions: Literal["all", "patches", "rotary"] = "all"
    """A table for all tokens, a table for patches alone (DINOv2 with registers), or rotary ones
    inside the attention (DINOv3)."""
    mlp_width: int = 0
    """Hidden width of a block's MLP; 0 means ``4 * embed_dim``."""
    gated_mlp: bool = False
    """SwiGLU (Shazeer, arXiv 2002.05202) in place of GELU."""
    norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""
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
        if not self.class_token and self.pool == "token":
            raise ConfigError("CONFIG-05", "without a class token pool must be mean.")
        if self.image_size % self.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.",
            )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which blocks of an encoder hold bottleneck adapters (`core_mri.models.adapters`)."""

    blocks: tuple[int, ...]
    """Indices of blocks, from 0."""
    width: int
    """Hidden width of an adapter."""


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


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Sizes of SAM's image encoder; images in [0, 1], the patch embedding normalises them."""

    embed_dim: int
    """Width of a token, D."""
    depth: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads; divides `embed_dim`."""
    global_blocks: tuple[int, ...]
    """Blocks that attend over the whole grid; the others inside windows."""
    patch_size: int = 16
    """Side of a square patch, pixels."""
    image_size: int = 1024
    """Side for which the position tables are stored, pixels; other sizes resample them."""
    window_size: int = 14
    """Side of an attention window, patches."""
    relative_positions: bool = True
    """Decomposed relative positions in every block (SAM has them, MRI-CORE does not)."""
    normalize_padding: bool = False
    """Windows that leave the grid are filled before the norm (MRI-CORE), not after it (SAM): the
    filling is then the norm's bias instead of zeros, and keys of it are attended to."""
    out_channels: int = 256
    """Channels of the neck, which a mask decoder needs; 0 leaves it out."""

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads or self.image_size % self.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads} and "
                f"image_size {self.image_size} of patch_size {self.patch_size}.",
            )


SAM_MODELS: dict[str, SamConfig] = {
    "sam_vit_micro": SamConfig(
        embed_dim=64,
        depth=3,
        num_heads=2,
        global_blocks=(2,),
        image_size=128,
        window_size=3,
        out_channels=32,
    ),
    "sam_vit_b": SamConfig(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "sam_vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "sam_vit_h": SamConfig(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
}
"""SAM (Kirillov et al., arXiv 2304.02643) in its published sizes, plus micro for tests."""


CoilMode = Literal["single", "multi", "any"]
"""What k-space a network was trained on: of one coil, of several, or that is not known."""


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """Sizes of fastMRI's U-Net (Zbontar et al., arXiv 1811.08839)."""

    channels: int = 32
    """After the first convolution; each pooling doubles them."""
    pools: int = 4
    """Average poolings, each halves both sides."""
    in_channels: int = 1
    """Of the input; only 1 reconstructs k-space."""
    out_channels: int = 1
    """Of the output; only 1 reconstructs k-space."""
    dropout: float = 0.0
    """Share of channels that training sets to zero after each convolution."""
    coils: CoilMode = "any"
    """What k-space it was trained on."""


@dataclass(frozen=True, kw_only=True)
class VarNetConfig:
    """Sizes of the end-to-end variational network (Sriram et al., arXiv 2004.06688)."""

    cascades: int = 12
    """Unrolled steps, each with its own U-Net."""
    channels: int = 18
    """Of those U-Nets, after the first convolution."""
    pools: int = 4
    """Poolings of those U-Nets."""
    map_channels: int = 8
    """Of the U-Net that finds the coil maps."""
    map_pools: int = 4
    """Poolings of that U-Net."""
    coils: CoilMode = "multi"
    """What k-space it was trained on."""


@dataclass(frozen=True, kw_only=True)
class UnrolledConfig:
    """Sizes of `core_mri.models.unrolled.Unrolled`."""

    num_steps: int = 6
    """Learned steps, each followed by one towards the measured samples."""
    steps_per_denoiser: int = 2
    """Consecutive steps that share their weights."""
    denoiser: Literal["unet", "resnet"] = "unet"
    """A small U-Net, or residual blocks at full resolution (SSDU's are 15 of 64 channels)."""
    channels: int = 16
    """Of the first level of the U-Net, which double with each, or of the residual blocks."""
    num_pools: int = 3
    """unet: levels below the first."""
    num_blocks: int = 15
    """resnet: residual blocks."""
    start: Literal["wavelet", "cg-sense"] = "wavelet"
    """The warm start: sparse in the Haar frame, or least squares (`core_mri.physics.classical`)."""
    start_steps: int = 40
    """Iterations of the warm start."""
    data_steps: int = 4
    """Conjugate gradients towards the data in each step; 0 is one gradient step, the cheap mode."""
    readout_coils: int = 0
    """Combinations of coils in ``A^H A`` at each readout position, where the mask is one of whole
    lines; 0 is all of them, which is exact."""
    encoder: EncoderConfig | None = None
    """A ViT that sees the warm start (`core_mri.models.conditioned`); None leaves it out."""
    encoder_depths: tuple[int, ...] = ()
    """Its blocks whose tokens are read."""
    coils: CoilMode = "any"
    """What k-space it was trained on."""

    def __post_init__(self) -> None:
        low = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int) and value < (name not in ("data_steps", "readout_coils"))
        }
        if low:
            raise ConfigError("CONFIG-05", f"sizes of an unrolled network are too small: {low}.")

    @property
    def deepest(self) -> int:
        """Channels of the deepest level of a denoiser."""
        return self.channels * (2**self.num_pools if self.denoiser == "unet" else 1)


ReconstructorConfig = UnetConfig | VarNetConfig | UnrolledConfig
RECONSTRUCTORS: dict[str, tuple[type[ReconstructorConfig], str]] = {
    "unet": (UnetConfig, "Unet"),
    "varnet": (VarNetConfig, "VarNet"),
    "unrolled": (UnrolledConfig, "Unrolled"),
}
"""Module of `core_mri.models` -> its configuration and its class, a `Reconstructor`."""

RECONSTRUCTION_MODELS: dict[str, ReconstructorConfig] = {
    "recon_unet_micro": UnetConfig(channels=8, pools=3),
    "recon_unet_32": UnetConfig(channels=32),
    "recon_unet_64": UnetConfig(channels=64),
    "recon_unet_128": UnetConfig(channels=128),
    "recon_unet_256": UnetConfig(channels=256),
    "varnet_micro": VarNetConfig(cascades=3, channels=6, pools=3, map_channels=4, map_pools=3),
    "varnet": VarNetConfig(),
    "unrolled_micro": UnrolledConfig(num_steps=2, channels=4, num_pools=2),
    "unrolled": UnrolledConfig(),
    "unrolled_resnet": UnrolledConfig(denoiser="resnet", channels=64, num_steps=10),
}
"""Networks for reconstruction in their published sizes, ours, and micro ones for tests."""
