"""Solvers of ``min_x 1/2 ||A x - y||^2 + penalty``, batched, on the normal operator ``A^H A``.

All take ``A^H A`` as a function and ``A^H y`` as an image, so that k-space is touched once. Each
entry of a batch has its own step sizes and thresholds. Shape letters: ``H W`` image, ``...`` batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core_mri.physics.sparsity import haar_shrink

Normal = Callable[[Tensor], Tensor]


def conjugate_gradient(
    normal: Normal,
    right: Tensor,
    *,
    ridge: float | Tensor = 0.0,
    start: Tensor | None = None,
    num_iterations: int = 10,
    tolerance: float = 0.0,
) -> Tensor:
    """Solve ``(A^H A + ridge I) x = right``.

    Source: Hestenes and Stiefel, J. Res. NBS 49 (1952); as CG-SENSE: Pruessmann et al., MRM 46
    (2001). Few iterations regularize by themselves.

    Args:
        normal: ``A^H A``, Hermitian and positive semidefinite.
        right: Complex ``[..., H, W]``.
        ridge: Not negative; a number or one a batch entry ``[..., 1, 1]``.
        start: Where to begin; zero by default.
        num_iterations: At most so many.
        tolerance: Stop when every residual is below this part of its right side. 0 never looks,
            which saves a wait for the device an iteration.

    Returns:
        ``[..., H, W]``; zero where the right side is zero.
    """
    x = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - normal(x) - ridge * x
    direction = residual
    energy = _energy(residual)
    limit = tolerance**2 * _energy(right)
    tiny = torch.finfo(energy.dtype).tiny
    for _ in range(num_iterations):
        if tolerance > 0 and bool((energy <= limit).all()):
            break
        image = normal(direction) + ridge * direction
        curvature = _inner(direction, image)
        step = energy / curvature.clamp_min(tiny)
        x = x + step * direction
        residual = residual - step * image
        before, energy = energy, _energy(residual)
        direction = residual + energy / before.clamp_min(tiny) * direction
    return x


def fista_haar(
    normal: Normal,
    right: Tensor,
    threshold: float | Tensor,
    *,
    num_iterations: int = 50,
    num_levels: int = 3,
    start: Tensor | None = None,
) -> Tensor:
    """Sparse reconstruction in the shift-invariant Haar frame, by accelerated proximal gradient.

        z = x_i + (t_{i-1} - 1) / t_i (x_i - x_{i-1}),   x_{i+1} = shrink(z - A^H A z + A^H y)

    The step is 1, so the norm of A must not exceed 1. Thresholds begin 31 times as high and fall as
    ``1 + 30 exp(-i / 8)``: large structures settle first, which saves more than half of the
    iterations at high acceleration.
    Sources: Beck and Teboulle, FISTA, SIAM J. Imaging Sci. 2 (2009); Lustig et al., Sparse MRI, MRM
    58 (2007); shrinkage and frame: `core_mri.physics.sparsity`.

    Args:
        normal: ``A^H A``.
        right: ``A^H y``, complex ``[..., H, W]``.
        threshold: Final threshold of the finest level in the units of the image; a number or one a
            batch entry ``[..., 1, 1]``.
        num_iterations: Iterations.
        num_levels: Levels of the frame.
        start: Where to begin; ``A^H y`` by default.

    Returns:
        ``[..., H, W]``.
    """
    x = right if start is None else start
    z, momentum = x, 1.0
    for i in range(num_iterations):
        stepped = z - normal(z) + right
        shrunk = haar_shrink(
            stepped, threshold * (1 + 30 * math.exp(-i / 8)), num_levels=num_levels
        )
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        z = torch.lerp(x, shrunk, 1 + (momentum - 1) / following)
        x, momentum = shrunk, following
    return x


def admm_tv(
    normal: Normal,
    right: Tensor,
    weight: float | Tensor,
    *,
    penalty: float = 0.1,
    num_iterations: int = 30,
    num_inner: int = 4,
) -> Tensor:
    """Isotropic total variation, by alternating directions.

        minimize  1/2 ||A x - y||^2 + weight * sum |D x|,   |D x|^2 = |D_h x|^2 + |D_w x|^2

        (A^H A + r D^H D) x = A^H y + r D^H (d - u)    by a few conjugate gradients
        d = soft(D x + u, weight / r)                  u = u + D x - d

    D are differences to the next pixel, around the edge. Sources: Rudin, Osher, Fatemi, Physica D
    60 (1992); Block et al., MRM 57 (2007); Goldstein and Osher, SIAM J. Imaging Sci. 2 (2009); Boyd
    et al., Found. Trends Mach. Learn. 3 (2011).

    Args:
        normal: ``A^H A``.
        right: ``A^H y``, complex ``[..., H, W]``.
        weight: In the units of the image; a number or one a batch entry ``[..., 1, 1]``.
        penalty: r; changes the speed, not the solution.
        num_iterations: Outer iterations.
        num_inner: Conjugate gradients in each, which start at the last image.

    Returns:
        ``[..., H, W]``.
    """
    x = right
    scaled = torch.zeros((2, *right.shape), dtype=right.dtype, device=right.device)
    split = differences(x)

    def system(image: Tensor) -> Tensor:
        return normal(image) + penalty * differences_adjoint(differences(image))

    for _ in range(num_iterations):
        target = right + penalty * differences_adjoint(split - scaled)
        x = conjugate_gradient(system, target, start=x, num_iterations=num_inner)
        moved = differences(x) + scaled
        energy = (moved.real**2 + moved.imag**2).sum(0)
        limit = torch.as_tensor(weight, device=right.device) / penalty
        # max(0, 1 - limit / |d|), written so that its slope is finite at 0
        factor = 1 - limit / torch.maximum(energy, limit**2 + 1e-30).sqrt()
        split = moved * factor
        scaled = moved - split
    return x


def differences(image: Tensor) -> Tensor:
    """Differences to the next row and to the next column, around the edge.

    Args:
        image: ``[..., H, W]``.

    Returns:
        ``[2, ..., H, W]``.
    """
    return torch.stack([image.roll(-1, -2) - image, image.roll(-1, -1) - image])


def differences_adjoint(fields: Tensor) -> Tensor:
    """The adjoint of `differences`: ``[2, ..., H, W]`` to ``[..., H, W]``."""
    rows, columns = fields[0], fields[1]
    return rows.roll(1, -2) - rows + columns.roll(1, -1) - columns


def _energy(x: Tensor) -> Tensor:
    return _inner(x, x)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """``Re <x, y>``, ``[..., 1, 1]``."""
    products = torch.view_as_real(x) * torch.view_as_real(y)
    return products.sum((-3, -2, -1))[..., None, None]
