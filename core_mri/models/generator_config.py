"""Sizes of generators; plain data, so that configurations load no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core_mri.errors import ConfigError

GeneratorKind = Literal["spade", "diffusion"]
Space = Literal["pixel", "latent"]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What determines the tensors of a generator, besides its labels and sequences."""

    kind: GeneratorKind = "spade"
    """spade: a conditional GAN whose layers are modulated by the label map; diffusion: denoising of
    pixels, steered by a ControlNet that reads the label map."""
    image_size: int = 128
    """Side of a slice, pixels; a multiple of ``2^depth`` (spade) or ``2^(depth - 1)`` (diffusion),
    times ``2^latent_levels`` in latent space."""
    width: int = 32
    """Channels at full resolution; they double with each level, up to eight times as many; a
    multiple of 8 for diffusion."""
    depth: int = 4
    """Levels of resolution."""
    style: int = 32
    """Spade: numbers that say what a scan looks like (contrast, coils), one set for all slices."""
    sampling_steps: int = 25
    """Diffusion: denoising steps of a sample (DDIM)."""
    space: Space = "pixel"
    """Diffusion: what is denoised, pixels or the latent image of an autoencoder trained before."""
    latent_channels: int = 4
    """Latent: channels of the latent image."""
    latent_levels: int = 2
    """Latent: how often the autoencoder halves rows and columns."""

    def __post_init__(self) -> None:
        if self.space == "latent" and self.kind != "diffusion":
            raise ConfigError("CONFIG-05", f"space latent belongs to diffusion, not {self.kind}.")
        halvings = self.depth if self.kind == "spade" else self.depth - 1
        halvings += self.latent_levels * (self.space == "latent")
        if self.depth < 2 or self.image_size % 2**halvings:
            raise ConfigError(
                "CONFIG-05",
                f"image_size {self.image_size} is no multiple of 2^{halvings} = {2**halvings} (by "
                f"depth {self.depth} and latent_levels), or depth is under 2.",
            )
        if self.kind == "diffusion" and self.width % 8:
            raise ConfigError(
                "CONFIG-05", f"a diffusion model of width {self.width}: must be a multiple of 8."
            )
        if min(self.width, self.style, self.sampling_steps) < 1:
            raise ConfigError("CONFIG-05", "width, style and sampling_steps must be 1 or more.")
        if min(self.latent_channels, self.latent_levels) < 1:
            raise ConfigError("CONFIG-05", "latent_channels and latent_levels must be 1 or more.")

    @property
    def channels(self) -> list[int]:
        """Channels of the levels, from full resolution down."""
        return [self.width * min(2**level, 8) for level in range(self.depth)]
