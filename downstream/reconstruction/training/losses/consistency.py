"""What must not change the answer: moving the patient, and noise. Never used without measurements.

Equivariance: the image x = f(y), flipped, turned or shifted by T, and measured again with another
mask M' and noise n, must be found again:

    loss = ||f(M' F S T x + n) - T x||^2 / (||T x||^2 + eps)

Noise: ``||f(y + n) - x||^2 / (||x||^2 + eps)``, x without gradients.

Alone both are satisfied by an image that ignores the data, so they are added to a loss on samples.
Sources: Chen, Tachella, Davies, Equivariant imaging, ICCV 2021 (arXiv:2103.14756); Desai et al.,
Noise2Recon, MRM 90 (2023). Shape letters: ``S`` slices, ``H W`` image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from core_mri.models.unrolled import Encoded

EPS = 1e-6
MAX_SHIFT = 0.1
"""Of the side of the image."""


def equivariance_loss(
    network: Callable[[Encoded], Tensor],
    encoded: Encoded,
    image: Tensor,
    *,
    mask: Tensor,
    noise: float,
    rng: np.random.Generator,
) -> Tensor:
    """The loss of each slice, ``[S]``.

    Args:
        network: Complex images of encoded slices.
        encoded: What `image` was made of; its maps are those of the second scan too.
        image: ``network(encoded)``, complex ``[S, H, W]``.
        mask: M', bool ``[S, H or 1, W]``.
        noise: Standard deviation of n over the largest value of a slice.
        rng: Draws T and n; one T for all slices.
    """
    moved = transformed(image, rng)
    again = replace(encoded, kspace=encoded.sense(mask).forward(moved), mask=mask)
    return _relative(network(with_noise(again, noise, rng)) - moved, moved)


def noise_loss(
    network: Callable[[Encoded], Tensor],
    encoded: Encoded,
    image: Tensor,
    *,
    noise: float,
    rng: np.random.Generator,
) -> Tensor:
    """The loss of each slice, ``[S]``; arguments as `equivariance_loss`."""
    fixed = image.detach()
    return _relative(network(with_noise(encoded, noise, rng)) - fixed, fixed)


def transformed(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip, turn by a multiple of 90 degrees where the image is square, and shift around."""
    if rng.random() < 0.5:
        image = image.flip(-1)
    height, width = image.shape[-2:]
    turns = int(rng.integers(4))
    image = image.rot90(turns if height == width else 2 * (turns % 2), (-2, -1))
    reach = [round(MAX_SHIFT * side) for side in (height, width)]
    shifts = [int(rng.integers(-n, n + 1)) for n in reach]
    return image.roll(shifts, (-2, -1))


def with_noise(encoded: Encoded, noise: float, rng: np.random.Generator) -> Encoded:
    """The same slices with more noise in what was measured."""
    grain = rng.standard_normal((2, *encoded.kspace.shape), dtype=np.float32) * noise / 2**0.5
    added = torch.complex(*torch.from_numpy(grain)).to(encoded.kspace.device)
    return replace(encoded, kspace=encoded.kspace + added * encoded.mask.unsqueeze(-3))


def _relative(difference: Tensor, wanted: Tensor) -> Tensor:
    energy = wanted.abs().square().sum((-2, -1))
    return difference.abs().square().sum((-2, -1)) / (energy + EPS)
