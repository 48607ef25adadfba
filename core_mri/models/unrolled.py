"""Our network for undersampled scans: a few steps between what is likely and what was measured.

    x_0     = sparse reconstruction or CG-SENSE, as without a network           the warm start
    d       = A x_0 + g (y - A x_0)                                             the data
    z_t     = x_t - D(x_t)                                                      learned
    x_{t+1} = argmin ||A x - d||^2 + mu ||x - z_t||^2                           a few CG steps
              or, without CG steps, z_t - step A^H (A z_t - d)                  cheap

A is `core_mri.physics.Sense` with the maps of the fully sampled center; mu > 0, step > 0 and g are
learned. At first D changes nothing and g is zero, so an untrained net is its warm start, whatever
that is: training begins at the classical image, and learns how far to trust what that leaves
unexplained, which is noise and what was smoothed away.
Sources: Aggarwal et al., MoDL, IEEE TMI 38 (2019); Hammernik et al., MRM 79 (2018); the warm start
and its gate are ours.

Shape letters: ``S`` slices, ``C`` coils, ``H W`` image, ``K`` channels of the deepest level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import DataError
from core_mri.models.conditioned import Context
from core_mri.models.denoisers import ComplexResNet, ComplexUNet, Modulation
from core_mri.models.encoder import Encoder
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.registry import UnrolledConfig
from core_mri.physics.classical import calibrate, penalty
from core_mri.physics.coils import coil_combine
from core_mri.physics.compression import combine_coils, combine_readouts, readout_matrices
from core_mri.physics.fourier import ifft2c
from core_mri.physics.noise import noise_level
from core_mri.physics.operators import Sense
from core_mri.physics.preparation import center_crop
from core_mri.physics.solvers import Normal, conjugate_gradient, fista_haar

MU, STEP = 0.1, 0.5
"""Values at first."""
GATE_SPEED = 10.0
"""Of a gate over its parameter: from 0 to 1 takes Adam 100 steps of 1e-3, which is early."""


@dataclass(frozen=True)
class Encoded:
    """Slices ready for the network."""

    kspace: Tensor
    """Complex ``[S, C, H, W]`` of virtual coils, over `scale`; zero where not measured."""
    maps: Tensor
    """``[S, C, H, W]``."""
    mask: Tensor
    """Bool ``[S, H or 1, W]``."""
    matrix: Tensor
    """Virtual coils of the real ones, ``[S, C, coils]``."""
    scale: Tensor
    """Largest magnitude of ``A^H y``, ``[S, 1, 1]``; 0 for a blank slice."""
    noise: Tensor
    """Standard deviation of the noise over `scale`, ``[S, 1, 1]``."""

    @property
    def acceleration(self) -> Tensor:
        """Points over measured points, ``[S]``."""
        return 1 / self.mask.to(self.scale.dtype).mean((-2, -1)).clamp_min(1e-6)

    def sense(self, mask: Tensor | None = None) -> Sense:
        """A with the own mask, or with another of its points, ``[S, H or 1, W]``."""
        return Sense(self.maps, self.mask if mask is None else mask)

    def to(self, device: torch.device) -> Encoded:
        """The same on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """All tensors changed alike."""
        return Encoded(**{name: function(tensor) for name, tensor in vars(self).items()})

    def of(self, mask: Tensor) -> Encoded:
        """The same with fewer measured points, in the same scale."""
        return replace(self, kspace=self.kspace * mask.unsqueeze(-3), mask=mask)


def encode(kspace: Tensor, mask: Tensor) -> Encoded:
    """Compress the coils of a slice, find their maps and scale it.

    Args:
        kspace: Complex ``[C, H, W]``.
        mask: Bool ``[W]`` or ``[H, W]``.

    Returns:
        One slice, S = 1.

    Raises:
        DataError: DATA-21 without the fully sampled center that coil maps need.
    """
    points = mask if mask.ndim > 1 else mask[None]
    kspace = kspace * points
    try:
        matrix, samples, found = calibrate(kspace, mask)
    except ValueError as error:
        raise DataError(
            "DATA-21", f"{error}.", fix="Use zero-filled, or a mask with a larger center."
        ) from None
    scale = Sense(found.maps, points).adjoint(samples).abs().amax((-2, -1), keepdim=True)
    positive = scale.clamp_min(torch.finfo(scale.dtype).tiny)
    noise = noise_level(kspace, points) / positive
    return Encoded(
        samples[None] / positive, found.maps[None], points[None], matrix[None], scale[None],
        noise[None],
    )  # fmt: skip


def target_of(encoded: Encoded, kspace: Tensor) -> Tensor:
    """The image of all samples, ``sum_c conj(S_c) F^-1 y_c``, in the scale of `encoded`.

    Args:
        encoded: Slices, some of whose samples were left out.
        kspace: All samples of all coils, complex ``[S, coils, H, W]``.

    Returns:
        Complex ``[S, H, W]``.
    """
    image = coil_combine(ifft2c(combine_coils(encoded.matrix, kspace)), encoded.maps)
    return image / encoded.scale.clamp_min(torch.finfo(encoded.scale.dtype).tiny)


def stacked(slices: Sequence[Encoded]) -> Encoded:
    """Slices of the same size and number of coils as one batch."""
    height = max(one.mask.shape[-2] for one in slices)
    return Encoded(
        torch.cat([one.kspace for one in slices]),
        torch.cat([one.maps for one in slices]),
        torch.cat([one.mask.expand(-1, height, -1) for one in slices]),
        torch.cat([one.matrix for one in slices]),
        torch.cat([one.scale for one in slices]),
        torch.cat([one.noise for one in slices]),
    )


class Unrolled(Reconstructor):
    """``A, y -> x``; see the head of this module.

    Args:
        config: Sizes; with ``config.encoder`` a random one, to be replaced by a pretrained one
            (``context.encoder``).
    """

    def __init__(self, config: UnrolledConfig) -> None:
        super().__init__()
        self.config: UnrolledConfig = config
        count = math.ceil(config.num_steps / config.steps_per_denoiser)
        self.denoisers = nn.ModuleList(_denoiser(config) for _ in range(count))
        weight = MU if config.data_steps else STEP
        self.weights = nn.Parameter(torch.full((count,), math.log(math.expm1(weight))))
        self.gates = nn.Parameter(torch.zeros(count))
        self.by_rate = nn.Linear(1, 2 * config.deepest)
        nn.init.zeros_(self.by_rate.weight)
        nn.init.zeros_(self.by_rate.bias)
        self.context: Context | None = None
        if config.encoder is not None:
            self.context = Context(
                Encoder(config.encoder),
                depths=config.encoder_depths,
                channels=config.deepest,
                num_denoisers=count,
            )

    @torch.no_grad()
    def warm_start(self, encoded: Encoded) -> Tensor:
        """The classical image, complex ``[S, H, W]``."""
        right = encoded.sense().adjoint(encoded.kspace)
        return self._warm_start(self._normal(encoded, right), right, encoded.noise)

    def forward(self, encoded: Encoded) -> Tensor:
        """Images in the scale of ``encoded.kspace``, complex ``[S, H, W]``."""
        right = encoded.sense().adjoint(encoded.kspace)
        normal = self._normal(encoded, right)
        x = self._warm_start(normal, right, encoded.noise)
        explained = normal(x)
        unexplained = right - explained
        weights = functional.softplus(self.weights)
        modulations = self._modulations(encoded, x)
        for step in range(self.config.num_steps):
            own = step // self.config.steps_per_denoiser
            z = x - self.denoisers[own](x, modulations[own])
            trusted = explained + GATE_SPEED * self.gates[own] * unexplained
            if self.config.data_steps:
                x = conjugate_gradient(
                    normal,
                    trusted + weights[own] * z,
                    ridge=weights[own],
                    start=z,
                    num_iterations=self.config.data_steps,
                )
            else:
                x = z - weights[own] * (normal(z) - trusted)
        return x

    def images(
        self,
        kspace: Tensor,
        mask: Tensor,
        *,
        size: tuple[int, int],
        num_low: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """Magnitudes ``[S, h, w]``; arguments as in `Reconstructor`, `num_low` has no effect.

        Raises:
            DataError: DATA-21 without the center that coil maps need.
        """
        points = mask.expand(len(kspace), *mask.shape[-3:]) if mask.ndim > 3 else mask
        images = []
        for number, own in enumerate(kspace):
            lines = points[number] if points.ndim > 3 else points
            lines = lines.reshape(lines.shape[-2:]) if lines.ndim > 1 else lines
            encoded = encode(own, lines[0] if lines.shape[0] == 1 else lines)
            images.append(center_crop(self(encoded).abs() * encoded.scale, size))
        return torch.cat(images)

    @torch.no_grad()
    def _warm_start(self, normal: Normal, right: Tensor, noise: Tensor) -> Tensor:
        weight = penalty(self.config.start, noise)
        solve = fista_haar if self.config.start == "wavelet" else _cg_sense
        return solve(normal, right, weight, num_iterations=self.config.start_steps)

    @torch.no_grad()
    def _normal(self, encoded: Encoded, right: Tensor) -> Normal:
        """``A^H A``, of fewer coils where that was asked for and readout positions are apart."""
        count = self.config.readout_coils
        if not 0 < count < encoded.maps.shape[-3] or encoded.mask.shape[-2] > 1:
            return encoded.sense().normal
        energy = right.real**2 + right.imag**2
        weight = energy + 1e-3 * energy.amax((-2, -1), keepdim=True)
        matrix = readout_matrices(encoded.maps, weight, count)
        return Sense(combine_readouts(matrix, encoded.maps), encoded.mask).normal

    def _modulations(self, encoded: Encoded, start: Tensor) -> list[Modulation]:
        """One a denoiser: by the acceleration, and by what the encoder sees."""
        rate = torch.log(encoded.acceleration)[:, None]
        scale, shift = self.by_rate(rate).chunk(2, -1)
        if self.context is None:
            return [Modulation(scale, shift)] * len(self.denoisers)
        seen = self.context(start.abs())
        return [
            Modulation(scale + own.scale, shift + own.shift, own.field)
            for own in self.context.modulations(seen)
        ]


def _denoiser(config: UnrolledConfig) -> ComplexUNet | ComplexResNet:
    if config.denoiser == "resnet":
        return ComplexResNet(config.channels, config.num_blocks)
    return ComplexUNet(config.channels, config.num_pools)


def _cg_sense(normal: Normal, right: Tensor, ridge: Tensor, *, num_iterations: int) -> Tensor:
    return conjugate_gradient(normal, right, ridge=ridge, num_iterations=num_iterations)
