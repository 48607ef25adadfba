"""Fit a generator to labelled slices: a GAN against patch discriminators, or a diffusion model.

A step depends on (seed, step) only, so a resumed run repeats it. Several workers share a batch and
sum their gradients. Shapes: B slices of a step, Q sequences, S side in pixels.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.models.generator import (
    NUM_TIMES,
    DiffusionGenerator,
    SpadeGenerator,
    build_generator,
    noise_schedule,
)
from core_mri.models.generator_config import GeneratorConfig
from core_mri.training.ema import update_ema
from core_mri.training.parallel import own_rows, sum_gradients, sum_numbers
from downstream.synthesis.config import GeneratorTraining

MAX_GRADIENT_NORM = 1.0


class GeneratorTrainer:
    """A generator in training.

    Args:
        images: [N, Q, S, S] in [0, 1], of all training patients.
        labels: [N, S, S] class indices.
        config: Sizes.
        training: How.
        names: Class index to name.
        sequences: Names of the channels.
        seed: Of weights, batches and noise.
        device: Where.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        config: GeneratorConfig,
        training: GeneratorTraining,
        names: Mapping[int, str],
        sequences: Sequence[str],
        seed: int,
        device: torch.device,
    ) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.training, self.seed, self.device = training, seed, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = build_generator(config, labels=names, sequences=sequences)
            self._set_up(built)
        self.generator = built.to(device)
        self.averaged = copy.deepcopy(self.generator) if training.ema else None
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), training.learning_rate, betas=self._betas
        )

    _betas = (0.9, 0.99)

    def _set_up(self, built: nn.Module) -> None:
        """Whatever else a kind trains, made before the optimisers."""

    @abstractmethod
    def step(self, index: int) -> dict[str, float]:
        """One batch; after a loss that is not finite the weights are as before."""

    def finish(self) -> SpadeGenerator | DiffusionGenerator:
        """The generator to release."""
        return (self.averaged or self.generator).eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "generator": self.generator.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else {},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.generator.load_state_dict(state["generator"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _batch(self, index: int) -> tuple[Tensor, Tensor, _Noise, float]:
        """This worker's images and labels, its noise, and its share of the batch."""
        rng = np.random.default_rng((self.seed, index))
        size = min(self.training.batch_size, len(self.images))
        chosen = rng.choice(len(self.images), size, replace=False)
        turned = rng.random(size) < 0.5 * self.training.mirror
        rows = own_rows(size)
        own, flip = torch.from_numpy(chosen[rows]), torch.from_numpy(turned[rows])
        own, flip = own.to(self.device), flip.to(self.device)
        images, labels = self.images[own], self.labels[own]
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        labels = torch.where(flip[:, None, None], labels.flip(-1), labels)
        noise = _Noise(int(rng.integers(2**62)), size, rows, self.device)
        return images, labels, noise, len(own) / size

    def _update(self, loss: Tensor, optimizer: torch.optim.Optimizer, index: int) -> None:
        """One step down the loss, which is this worker's part of that of the whole batch."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        if optimizer is self.optimizer:
            self._average(index)

    def _average(self, index: int) -> None:
        """Move the averaged weights after step `index`."""
        if self.averaged is not None:
            momentum = min(self.training.ema, (1 + index) / (10 + index))
            update_ema(self.averaged, self.generator, momentum)


class SpadeTrainer(GeneratorTrainer):
    """SPADE against two patch discriminators at two scales that see image and labels.

    Hinge losses, match of the discriminators' features, absolute error of images rebuilt from their
    own style, and the divergence of styles from N(0, 1) (Park et al., arXiv:1903.07291).
    """

    generator: SpadeGenerator
    _betas = (0.0, 0.9)

    def _set_up(self, built: nn.Module) -> None:
        from monai.networks.nets import MultiScalePatchDiscriminator

        assert isinstance(built, SpadeGenerator)
        size = built.config.image_size
        self.discriminator = MultiScalePatchDiscriminator(
            num_d=2,
            # The second scale has twice the layers, and must not end in a single patch.
            num_layers_d=max(1, int(math.log2(size / 4)) // 2),
            spatial_dims=2,
            channels=self.training.discriminator_width,
            in_channels=len(built.sequences) + len(built.labels) + 1,
            minimum_size_im=size,
            norm="INSTANCE",
        ).to(self.device)
        self.opponent = torch.optim.Adam(
            self.discriminator.parameters(), 2 * self.training.learning_rate, betas=self._betas
        )

    def step(self, index: int) -> dict[str, float]:
        """As `GeneratorTrainer.step`."""
        images, labels, noise, share = self._batch(index)
        known = self.generator.one_hot(labels)
        mean, log_variance = self.generator.styles(images)
        drawn = noise.normal(mean.shape[1:])
        grain = noise.normal((1, *images.shape[2:]))
        style = mean + torch.exp(0.5 * log_variance) * drawn
        made = self.generator(labels, style, grain)

        real, fake = self._judged(images, known), self._judged(made.detach(), known)
        against = _mean([functional.relu(1 - r[-1]).mean() for r in real])
        against = against + _mean([functional.relu(1 + f[-1]).mean() for f in fake])
        numbers = sum_numbers({"discriminator": share * float(against.detach())})
        if math.isfinite(numbers["discriminator"]):
            self._update(share * against, self.opponent, index)

        self.discriminator.requires_grad_(False)
        fake, real = self._judged(made, known), self._judged(images, known)
        parts = {
            "adversarial": -_mean([f[-1].mean() for f in fake]),
            "features": _mean(
                [
                    functional.l1_loss(f, r.detach())
                    for scale, other in zip(fake, real, strict=True)
                    for f, r in zip(scale[:-1], other[:-1], strict=True)
                ]
            ),
            "reconstruction": functional.l1_loss(made, images),
            "divergence": -0.5
            * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean(),
        }
        weights = {
            "adversarial": 1.0,
            "features": self.training.features,
            "reconstruction": self.training.reconstruction,
            "divergence": self.training.divergence,
        }
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        parts = {"loss": loss, **parts}
        numbers |= sum_numbers({name: share * float(p.detach()) for name, p in parts.items()})
        if math.isfinite(numbers["loss"]):
            self._update(share * loss, self.optimizer, index)
        self.discriminator.requires_grad_(True)
        return numbers

    def state(self) -> dict[str, Any]:
        """As `GeneratorTrainer.state`."""
        return super().state() | {
            "discriminator": self.discriminator.state_dict(),
            "opponent": self.opponent.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `GeneratorTrainer.restore`."""
        super().restore(state)
        self.discriminator.load_state_dict(state["discriminator"])
        self.opponent.load_state_dict(state["opponent"])

    def _judged(self, images: Tensor, known: Tensor) -> list[list[Tensor]]:
        """For each scale the features of its layers, the verdict on patches last."""
        verdicts, features = self.discriminator(torch.cat([2 * images - 1, known], 1))
        return [[*own, verdict] for own, verdict in zip(features, verdicts, strict=True)]


class DiffusionTrainer(GeneratorTrainer):
    """Mean square error of v = sqrt(a) noise - sqrt(1 - a) code at random noise levels."""

    generator: DiffusionGenerator

    def _set_up(self, built: nn.Module) -> None:
        from monai.networks.schedulers import DDPMScheduler

        del built
        self.scheduler = DDPMScheduler(NUM_TIMES, **noise_schedule())

    def step(self, index: int) -> dict[str, float]:
        """As `GeneratorTrainer.step`."""
        images, labels, noise, share = self._batch(index)
        with torch.no_grad():
            codes = self.generator.encode(images)
        drawn = noise.normal(codes.shape[1:])
        times = noise.integers(NUM_TIMES)
        noisy = self.scheduler.add_noise(codes, drawn, times)
        wanted = self.scheduler.get_velocity(codes, drawn, times)
        loss = functional.mse_loss(self.generator(labels, noisy, times), wanted)
        numbers = sum_numbers({"loss": share * float(loss.detach())})
        if math.isfinite(numbers["loss"]):
            self._update(share * loss, self.optimizer, index)
        return numbers


class _Noise:
    """Random numbers of one step: those of the whole batch, of which a worker takes its rows."""

    def __init__(self, seed: int, size: int, rows: slice, device: torch.device) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.size, self.rows, self.device = size, rows, device

    def normal(self, shape: Sequence[int]) -> Tensor:
        """[b, *shape], standard normal."""
        drawn = torch.randn(self.size, *shape, generator=self.random)
        return drawn[self.rows].to(self.device)

    def integers(self, high: int) -> Tensor:
        """[b], from 0 to high - 1."""
        return torch.randint(high, (self.size,), generator=self.random)[self.rows].to(self.device)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean()
