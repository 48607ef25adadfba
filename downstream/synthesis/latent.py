"""Fit a latent diffusion: an autoencoder of slices first, then the diffusion of what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from core_mri.models.generator import LatentDiffusionGenerator
from core_mri.training.parallel import sum_numbers
from downstream.synthesis.train import DiffusionTrainer

_AT_ONCE = 64
"""Slices that are encoded together."""


class LatentTrainer(DiffusionTrainer):
    """An autoencoder first, then the diffusion of its codes.

    The autoencoder learns by the absolute error of pixels and a trace of divergence; neither
    another network's features nor a discriminator judge it. Before the diffusion starts it takes
    its averaged weights, and mean and deviation of the codes of all slices are measured.
    """

    generator: LatentDiffusionGenerator

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = {id(p) for p in self.generator.autoencoder.parameters()}
        rest = [p for p in self.generator.parameters() if id(p) not in own]
        rate = self.training.learning_rate
        self.optimizer = torch.optim.Adam(rest, rate, betas=self._betas)
        self.coder = torch.optim.Adam(
            self.generator.autoencoder.parameters(), rate, betas=self._betas
        )

    def step(self, index: int) -> dict[str, float]:
        """As `GeneratorTrainer.step`."""
        if index < self.training.autoencoder_steps:
            return self._code(index)
        if index == self.training.autoencoder_steps:
            self._freeze()
        return super().step(index)

    def state(self) -> dict[str, Any]:
        """As `GeneratorTrainer.state`."""
        return super().state() | {"coder": self.coder.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `GeneratorTrainer.restore`."""
        super().restore(state)
        self.coder.load_state_dict(state["coder"])

    def _average(self, index: int) -> None:
        first = self.training.autoencoder_steps
        super()._average(index - first if index >= first else index)

    def _code(self, index: int) -> dict[str, float]:
        """A step of the autoencoder."""
        images, _, noise, share = self._batch(index)
        mean, deviation = self.generator.autoencoder.encode(2 * images - 1)
        codes = mean + deviation * noise.normal(mean.shape[1:])
        rebuilt = self.generator.autoencoder.decode(codes) / 2 + 0.5
        error = functional.l1_loss(rebuilt, images)
        divergence = mean.square() + deviation.square() - 1 - 2 * deviation.log()
        divergence = 0.5 * divergence.flatten(1).sum(1).mean()
        loss = error + self.training.code_divergence * divergence
        parts = {"loss": loss, "autoencoder": error, "divergence": divergence}
        numbers = sum_numbers({name: share * float(p.detach()) for name, p in parts.items()})
        if math.isfinite(numbers["loss"]):
            self._update(share * loss, self.coder, index)
            self._average(index)
        return numbers

    @torch.no_grad()
    def _freeze(self) -> None:
        """Settle what codes are, in the averaged generator too."""
        generator = self.generator
        if self.averaged is not None:
            generator.autoencoder.load_state_dict(self.averaged.autoencoder.state_dict())  # type: ignore[union-attr]
        codes = torch.cat([generator.encode(part) for part in self.images.split(_AT_ONCE)])
        # In float64, so that the order of a sum hardly counts.
        codes = codes.double() * generator.code_std + generator.code_mean
        generator.code_mean.copy_(codes.mean((0, 2, 3), keepdim=True))
        generator.code_std.copy_(codes.std((0, 2, 3), keepdim=True).clamp_min(1e-6))
