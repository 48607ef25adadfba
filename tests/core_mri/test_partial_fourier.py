"""Homodyne and POCS on k-space that misses most of one side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core_mri.physics import fft2c, homodyne, ifft2c, line_extent, pocs
from tests.core_mri.simulated_scan import bodies


def partial(width: int, start: int, stop: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    image = bodies(64, width)
    lines = torch.zeros(width, dtype=torch.bool)
    lines[start:stop] = True
    return fft2c(image) * lines, image, line_extent(lines)


@pytest.mark.parametrize(("width", "start", "stop"), [(96, 0, 60), (96, 36, 96), (97, 0, 60)])
class TestOneSided:
    def test_nearer_than_zeros(self, width: int, start: int, stop: int) -> None:
        kspace, image, extent = partial(width, start, stop)
        zeros = float((ifft2c(kspace).abs() - image.abs()).norm())
        for estimate in (homodyne(kspace, extent).abs(), pocs(kspace, extent).abs()):
            assert float((estimate - image.abs()).norm()) < 0.7 * zeros

    def test_pocs_keeps_what_was_measured(self, width: int, start: int, stop: int) -> None:
        kspace, _, extent = partial(width, start, stop)
        again = fft2c(pocs(kspace, extent))[:, start:stop]
        torch.testing.assert_close(again, kspace[:, start:stop], atol=1e-4, rtol=1e-4)

    def test_coils_and_batch(self, width: int, start: int, stop: int) -> None:
        kspace, _, extent = partial(width, start, stop)
        stack = torch.stack([kspace, 2 * kspace])
        torch.testing.assert_close(pocs(stack, extent)[1], pocs(2 * kspace, extent))
        torch.testing.assert_close(homodyne(stack, extent)[1], homodyne(2 * kspace, extent))


@pytest.mark.parametrize("width", [96, 97])
def test_whole_kspace_is_the_inverse_transform(width: int) -> None:
    kspace, image, extent = partial(width, 0, width)
    torch.testing.assert_close(pocs(kspace, extent), image, atol=1e-5, rtol=1e-4)


def test_no_center() -> None:
    kspace, _, extent = partial(96, 0, 40)
    for function in (homodyne, pocs):
        with pytest.raises(ValueError, match="line 48 of 96, is not measured"):
            function(kspace, extent)


def test_no_line() -> None:
    with pytest.raises(ValueError, match="no line is measured"):
        line_extent(torch.zeros(8, dtype=torch.bool))
