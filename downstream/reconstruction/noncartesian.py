"""Radial and spiral scans through mri-nufft (extra `noncartesian`): arrays in, an image out.

The files that `core_mri.files.read_kspace` reads are Cartesian; this is for samples and trajectory
that the caller has. Sources: Fessler and Sutton, IEEE TSP 51 (2003); Barnett et al., FINUFFT, SIAM
J. Sci. Comput. 41 (2019); Comby et al., mri-nufft, JOSS 10 (2025); Pruessmann et al., MRM 46
(2001). Shape letters: ``C`` coils, ``N`` samples, ``H W`` image.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core_mri.errors import ConfigError
from core_mri.physics.coils import coil_combine, coil_expand, root_sum_of_squares
from core_mri.physics.solvers import conjugate_gradient, fista_haar


class NonUniformSense:
    """``A x = F (S_c x)`` on any sampling points, and its adjoint.

    Args:
        maps: Coil maps, complex64 ``[C, H, W]``.
        trajectory: Points of k-space ``[N, 2]`` (rows, columns) in cycles per pixel, within 1/2.

    Raises:
        ConfigError: CONFIG-06 without mri-nufft, CONFIG-05 for a trajectory in other units.
    """

    def __init__(self, maps: Tensor, trajectory: Tensor) -> None:
        if importlib.util.find_spec("mrinufft") is None:
            raise ConfigError(
                "CONFIG-06",
                "radial and spiral scans need mri-nufft.",
                fix="Install it: pip install 'core-mri[noncartesian]'.",
            )
        reach = float(trajectory.abs().max())
        if trajectory.ndim != 2 or trajectory.shape[1] != 2 or not reach <= 0.5 + 1e-6:
            raise ConfigError(
                "CONFIG-05",
                f"a trajectory of shape {tuple(trajectory.shape)} that reaches {reach:.3g}: must "
                "be [samples, 2] in cycles per pixel, within 0.5.",
            )
        import mrinufft

        self.maps = maps
        make: Any = mrinufft.get_operator("finufft")
        points = (2 * np.pi * trajectory.cpu().numpy()).astype(np.float32)
        self._nufft = make(points, shape=tuple(maps.shape[-2:]), n_coils=len(maps))
        self._nufft.squeeze_dims = True

    def forward(self, image: Tensor) -> Tensor:
        """Image ``[H, W]`` to samples ``[C, N]``."""
        return self._on(self._nufft.op, coil_expand(image, self.maps)).reshape(len(self.maps), -1)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Samples ``[C, N]`` to an image ``[H, W]``."""
        return coil_combine(self.coil_images(samples), self.maps)

    def coil_images(self, samples: Tensor) -> Tensor:
        """``F^H y`` of each coil, ``[C, H, W]``."""
        return self._on(self._nufft.adj_op, samples).reshape(self.maps.shape)

    def normal(self, image: Tensor) -> Tensor:
        """``A^H A x``."""
        return self.adjoint(self.forward(image))

    def _on(self, function: Any, x: Tensor) -> Tensor:
        """Call on arrays of the host, where this backend computes."""
        done = function(np.ascontiguousarray(x.cpu().numpy(), dtype=np.complex64))
        return torch.from_numpy(np.asarray(done)).to(x.device)


def reconstruct_noncartesian(
    samples: Tensor,
    trajectory: Tensor,
    shape: tuple[int, int],
    method: Literal["gridding", "cg-sense", "wavelet"] = "wavelet",
    *,
    weight: float = 0.002,
    num_iterations: int = 30,
    center: float = 0.08,
) -> Tensor:
    """An image from radial or spiral samples; coil maps come from the middle of k-space.

    Args:
        samples: Complex64 ``[C, N]``.
        trajectory: ``[N, 2]``, as `NonUniformSense`.
        shape: H and W.
        method: ``gridding`` weights samples by their distance from the center (radial lines and
            spirals of constant pitch) and combines coils by root sum of squares.
        weight: Of the penalty, over the largest value of ``A^H y``.
        num_iterations: Of the solver.
        center: Radius in cycles per pixel of what the coil maps are made from.

    Returns:
        Complex ``[H, W]``; real for ``gridding``. Up to a constant factor for ``gridding``.

    Raises:
        ConfigError: As `NonUniformSense`.
    """
    ones = torch.ones(len(samples), *shape, dtype=torch.complex64, device=samples.device)
    plain = NonUniformSense(ones, trajectory)
    radius = trajectory.norm(dim=1).to(samples.device)
    ramp = radius.clamp_min(0.5 / max(shape))
    if method == "gridding":
        return root_sum_of_squares(plain.coil_images(samples * ramp), 0)
    hann = torch.where(radius < center, 0.5 + 0.5 * torch.cos(np.pi * radius / center), 0)
    coils = plain.coil_images(samples * ramp * hann)
    image = root_sum_of_squares(coils, 0)
    inside = image > 0.05 * image.max()
    maps = torch.where(inside, coils / image.clamp_min(1e-30), 0)
    sense = NonUniformSense(maps, trajectory)
    right = sense.adjoint(samples)
    norm = _largest_eigenvalue(sense, right)
    if method == "cg-sense":
        return conjugate_gradient(
            lambda x: sense.normal(x) / norm, right / norm, ridge=weight,
            num_iterations=num_iterations,
        )  # fmt: skip
    return fista_haar(
        lambda x: sense.normal(x) / norm, right / norm,
        weight * right.abs().amax((-2, -1), keepdim=True) / norm, num_iterations=num_iterations,
    )  # fmt: skip


def _largest_eigenvalue(sense: NonUniformSense, start: Tensor) -> Tensor:
    """Of ``A^H A``, a tenth more than power iteration finds, so that no step is too long."""
    x = start
    for _ in range(10):
        x = sense.normal(x / x.norm().clamp_min(1e-30))
    return 1.1 * x.norm()
