"""The residual of measured samples: what it sees, and that the phase does not hide it."""

from __future__ import annotations

import pytest
import torch

from core_mri.physics import center_crop, magnitude_residual, reconstruct, residual
from tests.core_mri.simulated_scan import bodies, scan


def test_the_truth_explains_its_samples() -> None:
    """Up to their noise, without knowing the phase."""
    kspace, mask, image, _ = scan(noise=0.0)
    noisy, _, _, _ = scan(noise=0.01)
    quiet = float(magnitude_residual(kspace, mask, image.abs()))
    loud = float(magnitude_residual(noisy, mask, image.abs()))
    noise = torch.linalg.vector_norm(noisy - kspace) / torch.linalg.vector_norm(noisy)
    assert quiet < 0.01
    assert loud == pytest.approx(float(noise), rel=0.3)


def test_a_made_up_structure_is_seen() -> None:
    kspace, mask, image, _ = scan()
    altered = image.abs().clone()
    altered[40:50, 30:40] += 0.5
    true, false = (float(magnitude_residual(kspace, mask, x)) for x in (image.abs(), altered))
    assert false > 4 * true


def test_agrees_with_the_complex_image() -> None:
    kspace, mask, _, _ = scan()
    done = reconstruct(kspace, mask, "wavelet")
    assert done.residual is not None
    found = float(magnitude_residual(kspace, mask, done.image.abs()))
    assert found == pytest.approx(float(done.residual), rel=0.25)


def test_more_steps_never_explain_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    kspace, mask, image, _ = scan()
    found = []
    for steps in (0, 1, 4, 16):
        monkeypatch.setattr(residual, "ITERATIONS", steps)
        found.append(float(magnitude_residual(kspace, mask, image.abs())))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]


def test_what_was_cut_away_is_free() -> None:
    kspace, mask, image, _ = scan()
    whole = float(magnitude_residual(kspace, mask, image.abs()))
    middle = center_crop(image.abs(), (96, 60))
    assert float(magnitude_residual(kspace, mask, middle)) < 1.5 * whole


def test_points_and_scale() -> None:
    kspace, mask, image, _ = scan()
    lines = float(magnitude_residual(kspace, mask, image.abs()))
    points = float(magnitude_residual(kspace, mask.expand(96, 80), image.abs()))
    scaled = float(magnitude_residual(kspace * 1e-5, mask, image.abs() * 1e-5))
    assert points == pytest.approx(lines, rel=0.5)
    assert scaled == pytest.approx(lines, rel=1e-3)


def test_nothing_measured() -> None:
    kspace, mask, _, _ = scan()
    found = magnitude_residual(torch.zeros_like(kspace), mask, bodies(96, 80).abs() * 0)
    assert float(found) == 0


def test_no_center() -> None:
    kspace, mask, image, _ = scan()
    mask[40] = False
    with pytest.raises(ValueError, match="center of k-space"):
        magnitude_residual(kspace * mask, mask, image.abs())
