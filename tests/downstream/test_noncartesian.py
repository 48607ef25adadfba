"""Radial and spiral samples through mri-nufft."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core_mri.errors import ConfigError
from core_mri.metrics import psnr
from downstream.reconstruction.noncartesian import NonUniformSense, reconstruct_noncartesian
from tests.core_mri.simulated_scan import bodies, coil_profiles

mrinufft = pytest.importorskip("mrinufft", reason="the extra `noncartesian` is not installed")

SIZE = 96
TRAJECTORIES = {
    "radial": lambda: mrinufft.initialize_2D_radial(60, 192),
    "spiral": lambda: mrinufft.initialize_2D_spiral(24, 512),
}


def simulated(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points = torch.from_numpy(TRAJECTORIES[name]().reshape(-1, 2).astype(np.float32))
    image, maps = bodies(SIZE, SIZE), coil_profiles(6, SIZE, SIZE)
    return NonUniformSense(maps, points).forward(image), points, image


def test_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 2, generator=generator) - 0.5
    sense = NonUniformSense(coil_profiles(3, 20, 24), points)
    x = torch.randn(20, 24, dtype=torch.complex64, generator=generator)
    y = torch.randn(3, 300, dtype=torch.complex64, generator=generator)
    left = (sense.forward(x).conj() * y).sum()
    right = (x.conj() * sense.adjoint(y)).sum()
    assert float((left - right).abs() / left.abs()) < 1e-4


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_methods(name: str) -> None:
    samples, points, image = simulated(name)
    truth = image.abs()[None]
    score = {}
    for method in ("gridding", "cg-sense", "wavelet"):
        found = reconstruct_noncartesian(samples, points, (SIZE, SIZE), method).abs()
        found = found * (found * truth[0]).sum() / found.square().sum()  # gridding has no scale
        score[method] = psnr(truth, found[None])
    assert score["cg-sense"] > score["gridding"] + 1
    assert score["wavelet"] > 25


def test_other_units() -> None:
    points = torch.rand(300, 2) * 6
    with pytest.raises(ConfigError, match=r"CONFIG-05.*cycles per pixel, within 0\.5"):
        NonUniformSense(coil_profiles(3, 20, 24), points)
