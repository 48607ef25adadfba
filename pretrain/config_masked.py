"""The objectives that predict hidden parts of one view: MAE and I-JEPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.config_views import Range, require


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Masked autoencoder (``objective.name: mae``; He et al., arXiv 2111.06377)."""

    mask_ratio: float = 0.75
    """Part of the patches that is hidden from the encoder."""
    normalize_pixels: bool = True
    """Predict each patch with its own mean and variance removed."""
    decoder_dim: int = 512
    """Width of the decoder; a multiple of 4 and of `decoder_heads`."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""

    def __post_init__(self) -> None:
        require(
            0 < self.mask_ratio < 1, f"mae.mask_ratio must lie in (0, 1), got {self.mask_ratio}."
        )
        _check_network("mae.decoder", self.decoder_dim, self.decoder_depth, self.decoder_heads)


@dataclass(frozen=True, kw_only=True)
class IjepaConfig:
    """Joint-embedding prediction (``objective.name: ijepa``; Assran et al., arXiv 2301.08243)."""

    num_targets: int = 4
    """Target blocks of a view."""
    target_scale: Range = (0.15, 0.2)
    """Area of a target block / area of the view."""
    target_aspect: Range = (0.75, 1.5)
    """Height / width of a target block."""
    context_scale: Range = (0.85, 1.0)
    """Area of the context block / area of the view, before target blocks are cut out of it."""
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Distance between prediction and target: that of the published code, or of the paper."""
    predictor_dim: int = 384
    """Width of the predictor; a multiple of 4 and of `predictor_heads`."""
    predictor_depth: int = 6
    """Blocks of the predictor."""
    predictor_heads: int = 12
    """Attention heads of the predictor."""

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            require(
                0 < low <= high <= 1, f"ijepa.{name} must be 0 < low <= high <= 1, got {low, high}."
            )
        low, high = self.target_aspect
        require(0 < low <= high, f"ijepa.target_aspect must be 0 < low <= high, got {low, high}.")
        require(
            self.num_targets >= 1, f"ijepa.num_targets must be positive, got {self.num_targets}."
        )
        require(
            self.num_targets * self.target_scale[1] < 1,
            f"{self.num_targets} target blocks of {self.target_scale[1]} may hide the whole view.",
            fix="Lower ijepa.num_targets or ijepa.target_scale.",
        )
        _check_network(
            "ijepa.predictor", self.predictor_dim, self.predictor_depth, self.predictor_heads
        )


def _check_network(name: str, dim: int, depth: int, heads: int) -> None:
    require(
        dim >= 4 and depth >= 1 and heads >= 1 and dim % 4 == 0 and dim % heads == 0,
        f"{name}_dim {dim} must be a multiple of 4 and of {name}_heads {heads}, and "
        f"{name}_depth {depth} positive.",
    )
