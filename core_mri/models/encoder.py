"""The encoder: a plain ViT from timm on single-channel slices.

Shapes: B images, H and W pixels, h = H / patch_size, w = W / patch_size, D = embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core_mri.errors import ConfigError, DataError
from core_mri.models.linear import accelerate
from core_mri.models.registry import AdapterConfig, EncoderConfig


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
        self.config = config
        self.vit: Any = _build_eva(config) if config.positions == "rotary" else _build_vit(config)
        accelerate(self.vit)
        self.mask_token = nn.Parameter(torch.zeros(config.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.adapters: AdapterConfig | None = None

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
            DataError: DATA-03 when there are neither 1 nor 3 channels, WEIGHTS-07 when intensities
                are far outside [0, 1] (in evaluation mode, on the CPU).
        """
        if not self.training:
            check_range(images)
        tokens, grid = self.embed(images, mask)
        arguments = self._block_arguments(grid)
        for block in self.vit.blocks:
            tokens = block(tokens, **arguments)
        return self._split(self.vit.norm(tokens), grid)

    def intermediates(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Normalised patch tokens [B, h, w, D] after each block of `depths` (0-based, or negative).

        Raises:
            ConfigError: CONFIG-05 when a depth does not exist.
        """
        wanted = check_depths(depths, self.depth)
        if not self.training:
            check_range(images)
        tokens, grid = self.embed(images, None)
        arguments = self._block_arguments(grid)
        kept: dict[int, Tensor] = {}
        for depth, block in enumerate(self.vit.blocks):
            tokens = block(tokens, **arguments)
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
        images = check_images(images, self.patch_size)
        patches = self.vit.patch_embed(
            (images - self.config.mean) / self.config.std
        )  # [B, h, w, D]
        grid = (int(patches.shape[1]), int(patches.shape[2]))
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = self.vit._pos_embed(patches)
        return tokens[0] if self.config.positions == "rotary" else tokens, grid

    def rotary_table(self, grid: tuple[int, int]) -> Tensor | None:
        """Sines and cosines [h * w, 2 * D / num_heads] for queries and keys of patches, or None."""
        if self.config.positions != "rotary":
            return None
        table: Tensor = self.vit.rope.get_embed(shape=list(grid))
        return table

    def _block_arguments(self, grid: tuple[int, int]) -> dict[str, Tensor]:
        """The rotary table of a grid for every block, or nothing."""
        table = self.rotary_table(grid)
        return {} if table is None else {"rope": table}

    def _split(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        patches = tokens[:, self.vit.num_prefix_tokens :]
        cls = tokens[:, 0] if self.config.pool == "token" else patches.mean(1)
        return Features(cls, patches.unflatten(1, grid))


def _sizes(config: EncoderConfig) -> dict[str, Any]:
    """Arguments that timm's two families of ViT share."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": 1,
        "num_classes": 0,
        "global_pool": "",
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "class_token": config.class_token,
        "no_embed_class": config.positions == "patches" or not config.class_token,
        "init_values": config.layer_scale or None,
        "drop_path_rate": config.drop_path,
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
        "dynamic_img_size": True,
    }


def _build_vit(config: EncoderConfig) -> nn.Module:
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    width = config.mlp_width or 4 * config.embed_dim
    gated = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if config.gated_mlp else {}
    return VisionTransformer(
        **_sizes(config),
        **gated,
        mlp_ratio=_ratio(width * (1 + config.gated_mlp), config.embed_dim),
        reg_tokens=config.num_registers,
    )


def _build_eva(config: EncoderConfig) -> nn.Module:
    """DINOv3 (Simeoni et al., arXiv 2508.10104) as timm has it."""
    from timm.models.eva import Eva

    width = config.mlp_width or 4 * config.embed_dim
    return Eva(
        **_sizes(config),
        mlp_ratio=_ratio(width, config.embed_dim),
        swiglu_mlp=config.gated_mlp,
        swiglu_align_to=1,  # gate and value apart, as published; widths as they are
        num_reg_tokens=config.num_registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_fc_norm=False,
    )


def _ratio(width: int, embed_dim: int) -> float:
    """Of `embed_dim`; timm multiplies and truncates, a hair more keeps whole numbers whole."""
    return (width + 1e-3) / embed_dim


SLACK = 0.25
"""How far intensities may leave [0, 1]: interpolation overshoots, other units leave by far more."""


def check_images(images: Tensor, patch_size: int) -> Tensor:
    """Images [B, 1 or 3, H, W] as one channel [B, 1, H, W], three channels averaged.

    Args:
        images: What a user gave.
        patch_size: Must divide H and W.

    Raises:
        ConfigError: CONFIG-05 when a side is no multiple of the patch size.
        DataError: DATA-03 when there are neither 1 nor 3 channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            "DATA-03",
            f"images must be [B, 1 or 3, H, W], got {list(images.shape)}.",
        )
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ConfigError(
            "CONFIG-05",
            f"image sides must be multiples of the patch size {patch_size}, got {height}x{width}.",
            fix="Pad or resize first (core_mri.preprocess does).",
        )
    return images.mean(1, keepdim=True) if images.shape[1] == 3 else images


def check_range(images: Tensor) -> None:
    """Look at the intensities; on the CPU only, as on a GPU every call would wait for the device.

    Raises:
        DataError: WEIGHTS-07 when they are far outside [0, 1] or not finite.
    """
    if images.device.type != "cpu" or not images.numel() or _is_captured():
        return
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise DataError(
            "WEIGHTS-07",
            f"images must be in [0, 1], got [{low:.4g}, {high:.4g}].",
            fix="Scale them first: core_mri.preprocess.Preprocess does, `Predictor` calls it.",
        )


def _is_captured() -> bool:
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def check_depths(depths: Sequence[int], depth: int) -> list[int]:
    """Indices of blocks, negative ones counted from the end, as non-negative ones.

    Raises:
        ConfigError: CONFIG-05 when one does not exist.
    """
    wanted = [index % depth for index in depths if -depth <= index < depth]
    if len(wanted) != len(depths):
        raise ConfigError("CONFIG-05", f"depths {list(depths)} must lie in [{-depth}, {depth}).")
    return wanted
