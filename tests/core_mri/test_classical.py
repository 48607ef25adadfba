"""The chain from k-space to slices: quality, properties, odd data."""

from __future__ import annotations

import pytest
import torch

from core_mri.metrics import psnr
from core_mri.physics.classical import Method, coil_maps, encode, reconstruct, weight_for
from tests.core_mri.simulated_scan import scan

SOLVERS: tuple[Method, ...] = ("cg-sense", "tv", "wavelet")


class TestQuality:
    def test_order_of_methods(self) -> None:
        kspace, mask, image, _ = scan(acceleration=4, center=0.16)
        score = {
            method: psnr(image.abs()[None], reconstruct(kspace, mask, method).image.abs()[None])
            for method in ("zero-filled", *SOLVERS)
        }
        assert score["cg-sense"] > score["zero-filled"] + 1
        assert score["tv"] > score["cg-sense"] + 3
        assert score["wavelet"] > score["tv"]

    @pytest.mark.parametrize("method", SOLVERS)
    def test_full_sampling_is_root_sum_of_squares(self, method: Method) -> None:
        kspace, mask, image, _ = scan(acceleration=1, noise=0.0002)
        estimate = reconstruct(kspace, mask, method).image.abs()
        assert psnr(image.abs()[None], estimate[None]) > 33

    def test_points(self) -> None:
        """Undersampled along both axes, as a slice of a 3-D scan."""
        kspace, _, image, _ = scan(acceleration=1)
        mask = torch.rand(96, 80, generator=torch.Generator().manual_seed(0)) < 0.3
        mask[36:60, 28:52] = True
        estimate = reconstruct(kspace * mask, mask).image.abs()
        assert psnr(image.abs()[None], estimate[None]) > 30


class TestProperties:
    @pytest.mark.parametrize("method", SOLVERS)
    def test_scale(self, method: Method) -> None:
        kspace, mask, _, _ = scan()
        one = reconstruct(kspace, mask, method).image.abs()
        tiny = reconstruct(1e-5 * kspace, mask, method).image.abs() / 1e-5
        assert float((one - tiny).norm() / one.norm()) < 1e-2

    @pytest.mark.parametrize("method", SOLVERS)
    def test_order_of_coils(self, method: Method) -> None:
        kspace, mask, _, _ = scan()
        one = reconstruct(kspace, mask, method).image.abs()
        moved = reconstruct(kspace[[4, 2, 5, 0, 1, 3]], mask, method).image.abs()
        assert float((one - moved).norm() / one.norm()) < 1e-2

    @pytest.mark.parametrize("method", SOLVERS)
    def test_batch(self, method: Method) -> None:
        kspace, mask, _, _ = scan()
        other = 3 * kspace.flip(-2)
        both = reconstruct(torch.stack([kspace, other]), mask, method).image.abs()
        one = reconstruct(kspace, mask, method).image.abs()
        assert float((both[0] - one).norm() / one.norm()) < 1e-2

    def test_same_data_same_image(self) -> None:
        kspace, mask, _, _ = scan()
        torch.testing.assert_close(
            reconstruct(kspace, mask).image, reconstruct(kspace, mask).image, rtol=0, atol=0
        )

    def test_noise_raises_the_weight(self) -> None:
        weights = []
        for noise in (0.001, 0.02, 0.1):
            kspace, mask, _, _ = scan(height=160, noise=noise)
            weights.append(float(weight_for("wavelet", encode(kspace, mask))))
        assert weights[0] < 0.002
        assert weights[1] < weights[2]

    def test_weight_by_hand(self) -> None:
        kspace, mask, _, _ = scan()
        done = reconstruct(kspace, mask, "wavelet", weight=0.01)
        assert float(done.weight) == pytest.approx(0.01)

    @pytest.mark.parametrize("method", ["zero-filled", *SOLVERS])
    def test_rows_that_are_wanted(self, method: Method) -> None:
        """The middle of the readout alone, as of the whole."""
        kspace, mask, _, _ = scan(height=97)
        whole = reconstruct(kspace, mask, method).image.abs()
        part = reconstruct(kspace, mask, method, num_rows=60).image.abs()
        assert part.shape == (60, 80)
        assert encode(kspace, mask, num_rows=60).right.shape == (60, 80)
        # The edges lose a neighbor; the inside does not notice.
        inside = slice(8, -8)
        difference = (part - whole[18:78])[inside]
        assert float(difference.norm() / whole[18:78][inside].norm()) < 0.03

    def test_given_maps(self) -> None:
        kspace, mask, image, maps = scan()
        estimate = reconstruct(kspace, mask, maps=maps).image.abs()
        assert psnr(image.abs()[None], estimate[None]) > 30


class TestOddData:
    @pytest.mark.parametrize("method", SOLVERS)
    @pytest.mark.parametrize(
        ("num_coils", "height", "width"), [(1, 96, 80), (6, 97, 81), (2, 33, 47), (20, 64, 64)]
    )
    def test_sizes_and_coils(self, method: Method, num_coils: int, height: int, width: int) -> None:
        kspace, mask, image, _ = scan(num_coils, height, width, acceleration=2, center=0.3)
        estimate = reconstruct(kspace, mask, method).image
        assert estimate.shape == image.shape
        assert psnr(image.abs()[None], estimate.abs()[None]) > 18

    @pytest.mark.parametrize("method", ["zero-filled", *SOLVERS])
    def test_a_silent_slice_beside_another(self, method: Method) -> None:
        kspace, mask, _, _ = scan()
        both = reconstruct(torch.stack([kspace, torch.zeros_like(kspace)]), mask, method).image
        assert bool(torch.isfinite(torch.view_as_real(both + 0j)).all())
        assert not both[1].any()
        assert both[0].any()

    def test_small_center_gets_low_resolution_maps(self) -> None:
        kspace, _, _, _ = scan(acceleration=1)
        mask = torch.zeros(80, dtype=torch.bool)
        mask[::3] = mask[37:43] = True
        found = coil_maps(kspace * mask, mask)
        low = coil_maps(kspace * mask, mask, "low-resolution")
        torch.testing.assert_close(found.maps, low.maps)

    def test_no_center_works_for_zero_filled_alone(self) -> None:
        kspace, mask, _, _ = scan()
        mask = mask.clone()
        mask[40] = False
        assert reconstruct(kspace * mask, mask, "zero-filled").image.any()
        with pytest.raises(ValueError, match="center of k-space, line 40 of 80, is missing"):
            reconstruct(kspace * mask, mask, "wavelet")
