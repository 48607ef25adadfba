"""Pictures from label maps: random contrast, coils, resolution, motion and noise, never the same.

The idea is SynthSeg's (Billot et al., Medical Image Analysis 86, 2023, arXiv:2107.09559): a network
that sees every contrast learns the anatomy. Nothing here was learned from pictures, and nothing is
a scan: what comes out is synthetic. Shapes: N slices of one scan, S side in pixels, K label values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from core_mri.errors import ConfigError
from core_mri.physics.bias_field import NUM_COEFFICIENTS, apply_bias, bias_field
from core_mri.physics.blur import gaussian_blur, kernel_radius
from core_mri.physics.low_field import hamming
from core_mri.physics.motion import Artefacts, corrupted

Range = tuple[float, float]
FIELD_NODES = 6
"""Nodes along a side of the grid of random displacements."""
WINDOW = (0.005, 0.995)
"""Quantiles that become 0 and 1, as in the input contract of released weights."""


@dataclass(frozen=True, kw_only=True)
class Physics:
    """How far a synthetic scan may differ from the next one; draws are uniform."""

    rotation: float = 12.0
    """Largest angle, degrees."""
    scale: float = 0.12
    """Largest change of size, as a share."""
    shift: float = 0.05
    """Largest shift, as a share of the side."""
    displacement: float = 0.012
    """Standard deviation of displacements at nodes, as a share of the side, bicubic between
    them."""
    mean: Range = (0.05, 1.0)
    """Mean signal of a tissue."""
    spread: Range = (0.0, 0.08)
    """Standard deviation of the signal within a tissue."""
    background_chance: float = 0.75
    """How often value 0 is air, of signal 0, and no tissue of unknown kind."""
    blur_px: Range = (0.3, 1.1)
    """Standard deviation of the blur that mixes tissues at their edges (partial volume)."""
    thickness: Range = (0.0, 0.8)
    """Standard deviation of the blur across slices, in slices."""
    bias_ratio: Range = (1.0, 3.0)
    """Brightest over darkest place of the coils."""
    log_gamma: float = 0.3
    """Largest change of the logarithm of gamma."""
    resolution: Range = (0.35, 1.0)
    """Part of k-space that is measured, along either axis."""
    noise: Range = (0.0, 0.08)
    """Standard deviation of the noise of the receiver, over the brightest signal."""
    artefact_chance: float = 0.2
    """How often each of motion, ghosts and spikes happens."""
    motion_px: float = 4.0
    """Largest movement between two parts of the measurement, as a shift."""
    motion_degrees: float = 3.0
    """And as a rotation."""
    ghost: float = 0.25
    """Largest strength of ghosts along the phase direction."""
    spike: float = 0.15
    """Largest strength of a spike in k-space, over the brightest signal."""

    def __post_init__(self) -> None:
        for name in (
            "mean", "spread", "blur_px", "thickness", "bias_ratio", "resolution", "noise",
        ):  # fmt: skip
            low, high = getattr(self, name)
            lowest, highest = _ALLOWED.get(name, (0.0, math.inf))
            if not lowest <= low <= high <= highest:
                raise ConfigError(
                    "CONFIG-05",
                    f"{name} must be an ascending pair within [{lowest:g}, {highest:g}], "
                    f"got ({low:g}, {high:g}).",
                )
        for name in ("background_chance", "artefact_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError("CONFIG-05", f"{name} must lie in [0, 1].")


_ALLOWED = {"bias_ratio": (1.0, math.inf), "resolution": (0.05, 1.0), "blur_px": (0.05, math.inf)}


def label_to_image(
    labels: Tensor,
    seed: int,
    physics: Physics | None = None,
    *,
    groups: Sequence[Sequence[int]] = (),
) -> tuple[Tensor, Tensor]:
    """A synthetic scan of an anatomy, and its labels where the anatomy lies in it.

    All slices share one draw (pose, contrast, coils, resolution, artefacts) and have noise of their
    own: they are one scan. The same labels, seed and physics give the same scan.

    Args:
        labels: Integers [N, S, S], 0 outside of what is labelled; values need not be contiguous.
        seed: Determines everything.
        physics: How far the scan may vary.
        groups: Values that share one signal, such as both sides of a structure.

    Returns:
        Float32 images [N, S, S] in [0, 1] and labels [N, S, S] of the type given.
    """
    physics = physics or Physics()
    moved = deformed(labels, seed, physics)
    return scan_of(moved, seed, physics, groups=groups), moved


def deformed(labels: Tensor, seed: int, physics: Physics) -> Tensor:
    """The anatomy of a scan: label maps [N, S, S] rotated, scaled, shifted and bent."""
    return _deformed(labels, np.random.default_rng((seed, 0)), physics)


def scan_of(
    labels: Tensor,
    seed: int,
    physics: Physics,
    *,
    groups: Sequence[Sequence[int]] = (),
    means: Mapping[int, Range] | None = None,
) -> Tensor:
    """A scan [N, S, S] in [0, 1] of an anatomy as it lies; another seed is another sequence of it.

    Args:
        labels: [N, S, S].
        seed: Determines contrast, coils, resolution, artefacts and noise.
        physics: How far these may vary.
        groups: Values that share one signal.
        means: Range of the mean signal of some values, in place of ``physics.mean``.
    """
    rng = np.random.default_rng((seed, 1))
    images = _painted(labels, rng, physics, groups, means or {})
    images = gaussian_blur(
        images,
        images.new_full((len(images), 1, 1), rng.uniform(*physics.blur_px)),
        _radius(physics),
    )
    images = _across(images, rng.uniform(*physics.thickness))
    images = _shaded(images, rng, physics)
    images = _measured(images, rng, physics)
    return windowed(images)


def windowed(images: Tensor) -> Tensor:
    """``clip((x - q_low) / (q_high - q_low), 0, 1)``, one window for all slices [N, S, S]."""
    ordered = images.flatten().sort().values
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in WINDOW)
    return ((images - low) / (high - low).clamp_min(1e-6)).clamp_(0, 1)


def _deformed(labels: Tensor, rng: np.random.Generator, physics: Physics) -> Tensor:
    """Rotated, scaled, shifted and bent; a value is never invented."""
    angle, zoom, *shift = rng.uniform(-1, 1, 4)
    angle = math.radians(physics.rotation) * angle
    zoom = 1 + physics.scale * zoom
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    x, y = (2 * physics.shift * part for part in shift)  # the sampling grid spans [-1, 1]
    matrix = torch.tensor([[[cos, -sin, x], [sin, cos, y]]], dtype=torch.float32)
    nodes = rng.normal(0, 2 * physics.displacement, (1, 2, FIELD_NODES, FIELD_NODES))
    size = labels.shape[-1]
    bend = functional.interpolate(
        torch.from_numpy(nodes.astype(np.float32)), (size, size), mode="bicubic"
    )
    grid = functional.affine_grid(matrix, [1, 1, size, size], align_corners=False)
    points = (grid + bend.permute(0, 2, 3, 1)).to(labels.device)
    # Nearest by hand: a picture of floats could not hold every label value exactly.
    place = ((points[0] + 1) * (size / 2) - 0.5).round().long()
    inside = ((place >= 0) & (place < size)).all(-1)
    column, row = place.clamp(0, size - 1).unbind(-1)
    return torch.where(inside, labels[:, row, column], 0)


def _painted(
    labels: Tensor,
    rng: np.random.Generator,
    physics: Physics,
    groups: Sequence[Sequence[int]],
    ranges: Mapping[int, Range],
) -> Tensor:
    """``m_k + s_k n`` in tissue k, n standard normal."""
    values, index = torch.unique(labels, return_inverse=True)
    within = np.array([ranges.get(value, physics.mean) for value in values.tolist()]).T
    means = rng.uniform(*within).astype(np.float32)
    spreads = rng.uniform(*physics.spread, len(values)).astype(np.float32)
    known = {int(value): place for place, value in enumerate(values)}
    if 0 in known and rng.random() < physics.background_chance:
        means[known[0]] = spreads[known[0]] = 0
    for group in groups:
        places = [known[value] for value in group if value in known]
        if places:
            means[places], spreads[places] = means[places[0]], spreads[places[0]]
    mean, spread = (torch.from_numpy(a).to(labels.device)[index] for a in (means, spreads))
    return (mean + spread * _normal(rng, labels)).clamp_min_(0)


def _shaded(images: Tensor, rng: np.random.Generator, physics: Physics) -> Tensor:
    """Gamma of the contrast, then the bias field of the coils."""
    gamma = math.exp(rng.uniform(-physics.log_gamma, physics.log_gamma))
    images = images.clamp(0, 1).pow(gamma)
    draws = rng.uniform(-1, 1, (1, NUM_COEFFICIENTS)).astype(np.float32)
    coefficients = torch.from_numpy(draws).to(images.device)
    ratio = images.new_full((1, 1, 1), rng.uniform(*physics.bias_ratio))
    return apply_bias(images, bias_field(coefficients, ratio, images.shape[-1]))


def _measured(images: Tensor, rng: np.random.Generator, physics: Physics) -> Tensor:
    """``|F^-1 w (A x + s n)|``: artefacts A, a Hamming window w of the resolution, noise n.

    The noise of the picture has the standard deviation asked for, as `low_field` explains.
    """
    size = images.shape[-1]
    resolution = rng.uniform(*physics.resolution, 2).astype(np.float32)
    rows, columns = hamming(torch.from_numpy(resolution[:, None]).to(images.device), size)
    window = rows[:, None] * columns[None, :]
    happens = rng.random(3) < physics.artefact_chance
    drawn = Artefacts(
        rng,
        motion_px=physics.motion_px * happens[0],
        motion_degrees=physics.motion_degrees * happens[0],
        ghost=physics.ghost * happens[1],
        spike=physics.spike * happens[2],
    )
    level = rng.uniform(*physics.noise) / float(window.square().mean().sqrt())
    noise = torch.complex(_normal(rng, images), _normal(rng, images))
    kspace = corrupted(images, drawn) + level * noise
    return torch.fft.ifft2(window * kspace, norm="ortho").abs()


def _across(images: Tensor, sigma: float) -> Tensor:
    """Slices as thick as a Gaussian of `sigma` slices; those at the end are repeated."""
    if len(images) == 1 or sigma < 0.1:
        return images
    radius = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    weights = (kernel / kernel.sum()).tolist()
    last = len(images) - 1
    place = torch.arange(len(images), device=images.device)
    parts = [
        weight * images[(place + offset).clamp(0, last)]
        for offset, weight in zip(range(-radius, radius + 1), weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    drawn: npt.NDArray[np.float32] = rng.standard_normal(like.shape, dtype=np.float32)
    return torch.from_numpy(drawn).to(like.device)


def _radius(physics: Physics) -> int:
    return kernel_radius(physics.blur_px[1])
