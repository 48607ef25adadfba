"""Calibration regions, coil maps, compression and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core_mri.physics import (
    calibration_region,
    combine_coils,
    compress_readouts,
    compression_matrix,
    espirit_maps,
    fft2c,
    ifft2c,
    ifftnc,
    low_resolution_maps,
    noise_covariance,
    noise_level,
    whitening_matrix,
)
from tests.core_mri.simulated_scan import bodies, scan


def leakage(maps: Tensor, image: Tensor, truth: Tensor) -> float:
    """Part of the signal inside the body that the maps cannot explain: ``1 - |S^H c|^2/|c|^2``."""
    inside = image.abs() > 0.05
    coils = truth * image
    explained = (maps.conj() * coils).sum(0).abs().square()
    return float(1 - explained[inside].sum() / coils.abs().square().sum(0)[inside].sum())


class TestCalibrationRegion:
    def test_lines(self) -> None:
        mask = np.zeros(40, dtype=bool)
        mask[15:27] = True
        assert calibration_region(mask, 64) == (20, 44, 15, 27)

    def test_is_cut_to_its_size(self) -> None:
        assert calibration_region(np.ones(40, dtype=bool), 64, size=10).shape == (10, 10)

    def test_points(self) -> None:
        mask = np.zeros((30, 20), dtype=bool)
        mask[10:21, 6:15] = True
        mask[10, 6] = False
        top, bottom, left, right = calibration_region(mask, 30)
        assert mask[top:bottom, left:right].all()
        assert (bottom - top) * (right - left) >= 10 * 8

    def test_odd_and_tiny(self) -> None:
        assert calibration_region(np.ones(7, dtype=bool), 5).shape == (5, 7)

    def test_no_center(self) -> None:
        mask = np.ones(40, dtype=bool)
        mask[20] = False
        with pytest.raises(ValueError, match=r"line 20 of 40, is missing"):
            calibration_region(mask, 64)

    def test_too_few_lines(self) -> None:
        mask = np.zeros(40, dtype=bool)
        mask[19:22] = True
        with pytest.raises(ValueError, match=r"holds 3 fully sampled lines, at least 4"):
            calibration_region(mask, 64)


class TestEspirit:
    @pytest.mark.parametrize(("height", "width"), [(96, 80), (97, 81), (64, 128)])
    def test_explains_the_coil_images(self, height: int, width: int) -> None:
        kspace, mask, image, truth = scan(height=height, width=width, noise=0.0005)
        found = espirit_maps(kspace, calibration_region(mask, height))
        assert leakage(found.maps, image, truth) < 2e-3

    def test_against_sigpy(self) -> None:
        app = pytest.importorskip("sigpy.mri.app")
        kspace, mask, image, truth = scan()
        theirs = app.EspiritCalib(
            kspace.numpy(), calib_width=16, thresh=0.01, crop=0.7, show_pbar=False
        ).run()
        ours = espirit_maps(kspace, calibration_region(mask, 96, size=16)).maps
        assert leakage(ours, image, truth) < 1.1 * leakage(torch.from_numpy(theirs), image, truth)
        inside = image.abs() > 0.05
        agreement = (ours.conj() * torch.from_numpy(theirs)).sum(0).abs()[inside]
        assert float(agreement.quantile(0.05)) > 0.99

    def test_unit_in_the_body_and_zero_in_air(self) -> None:
        kspace, mask, image, _ = scan()
        power = espirit_maps(kspace, calibration_region(mask, 96)).maps.abs().square().sum(0)
        assert bool(((power - 1).abs() < 1e-4).logical_or(power == 0).all())
        assert bool((power[image.abs() > 0.1] > 0.5).all())
        assert not power[:8, :8].any()

    def test_image_is_nearly_real(self) -> None:
        kspace, mask, image, _ = scan(acceleration=1, noise=0.0)
        maps = espirit_maps(kspace, calibration_region(mask, 96)).maps
        combined = (maps.conj() * ifft2c(kspace)).sum(0)
        inside = image.abs() > 0.3
        assert float(combined.imag[inside].norm() / combined[inside].norm()) < 0.1

    def test_batch_is_the_single_slices(self) -> None:
        first, mask, _, _ = scan()
        second = first.flip(-2)
        region = calibration_region(mask, 96)
        both = espirit_maps(torch.stack([first, second]), region).maps
        torch.testing.assert_close(both[0], espirit_maps(first, region).maps, rtol=1e-3, atol=1e-3)

    def test_scale_does_not_matter(self) -> None:
        kspace, mask, _, _ = scan()
        region = calibration_region(mask, 96)
        small = espirit_maps(1e-6 * kspace, region).maps
        torch.testing.assert_close(small, espirit_maps(kspace, region).maps, rtol=1e-2, atol=1e-2)

    def test_silence_gives_zeros(self) -> None:
        mask = torch.ones(40, dtype=torch.bool)
        maps = espirit_maps(torch.zeros(4, 40, 40, dtype=torch.complex64),
                            calibration_region(mask, 40)).maps  # fmt: skip
        assert not maps.any()

    def test_region_smaller_than_the_kernel(self) -> None:
        kspace, mask, _, _ = scan()
        with pytest.raises(ValueError, match="4x4 samples is smaller than kernels of 6x6"):
            espirit_maps(kspace, calibration_region(mask, 96, size=4))


class TestLowResolution:
    def test_explains_the_coil_images(self) -> None:
        kspace, mask, image, truth = scan()
        found = low_resolution_maps(kspace, calibration_region(mask, 96))
        assert leakage(found.maps, image, truth) < 0.05
        assert found.image.shape == image.shape


class TestCompression:
    def test_all_coils_lose_nothing(self) -> None:
        kspace, *_ = scan(num_coils=5)
        virtual = combine_coils(compression_matrix(kspace, 5), kspace)
        assert float(virtual.norm()) == pytest.approx(float(kspace.norm()), rel=1e-4)

    def test_orthonormal_and_sorted(self) -> None:
        kspace, *_ = scan(num_coils=5)
        matrix = compression_matrix(kspace, 3)
        torch.testing.assert_close(matrix @ matrix.mH, torch.eye(3) + 0j, atol=1e-5, rtol=0)
        energies = combine_coils(matrix, kspace).abs().square().sum((1, 2))
        assert bool((energies[:-1] >= energies[1:]).all())

    def test_is_the_singular_value_decomposition(self) -> None:
        kspace, *_ = scan(num_coils=5)
        values = np.linalg.svd(kspace.flatten(1).numpy(), compute_uv=False)
        energies = combine_coils(compression_matrix(kspace, 3), kspace).abs().square().sum((1, 2))
        np.testing.assert_allclose(energies.numpy(), values[:3] ** 2, rtol=1e-3)

    def test_order_of_coils_does_not_matter(self) -> None:
        kspace, *_ = scan(num_coils=5)
        moved = kspace[[3, 1, 4, 0, 2]]
        images = [combine_coils(compression_matrix(k, 3), k).abs() for k in (kspace, moved)]
        torch.testing.assert_close(*images, rtol=1e-2, atol=1e-3)

    def test_readouts_apart_keep_more(self) -> None:
        """Per readout position, 3 virtual coils keep more of the maps than 3 for all."""
        _, _, image, maps = scan(num_coils=8, noise=0)
        samples = fft2c(maps * image)
        together = combine_coils(compression_matrix(samples, 3), maps * image)
        weight = image.abs().square() + 1e-6
        data, virtual = compress_readouts(ifftnc(samples, (-2,)), maps, weight, 3)
        apart = virtual * image
        torch.testing.assert_close(ifftnc(data, (-1,)), apart, atol=1e-4, rtol=0)
        lost = [1 - float(v.norm() / (maps * image).norm()) for v in (together, apart)]
        assert lost[1] < 0.5 * lost[0]


class TestNoise:
    def test_whitening(self) -> None:
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(4, 4, dtype=torch.complex64, generator=generator)
        noise = mixing @ torch.randn(4, 20000, dtype=torch.complex64, generator=generator)
        white = whitening_matrix(noise_covariance(noise)) @ noise
        covariance = noise_covariance(white)
        torch.testing.assert_close(covariance, 2 * torch.eye(4) + 0j, atol=1e-3, rtol=0)
        assert float(white.real.std()) == pytest.approx(1, rel=0.02)

    def test_an_unplugged_coil(self) -> None:
        noise = torch.randn(3, 100, dtype=torch.complex64)
        noise[1] = 0
        with pytest.raises(ValueError, match="unplugged"):
            whitening_matrix(noise_covariance(noise))

    def test_too_few_samples(self) -> None:
        with pytest.raises(ValueError, match="7 samples of noise for 4 coils: at least 8"):
            noise_covariance(torch.ones(4, 7, dtype=torch.complex64))

    @pytest.mark.parametrize("num_coils", [1, 4, 8])
    @pytest.mark.parametrize("sigma", [0.01, 0.05])
    def test_level(self, num_coils: int, sigma: float) -> None:
        kspace, mask, _, _ = scan(num_coils=num_coils, height=160, noise=sigma)
        found = float(noise_level(kspace, mask[None]))
        assert 0.7 * sigma < found < (3 if num_coils == 1 else 1.2) * sigma

    def test_level_of_silence(self) -> None:
        zeros = torch.zeros(4, 32, 32, dtype=torch.complex64)
        assert float(noise_level(zeros, torch.ones(1, 32, dtype=torch.bool))) == 0
        assert float(noise_level(zeros[:1], torch.ones(1, 32, dtype=torch.bool))) == 0

    def test_bodies_are_bodies(self) -> None:
        assert 0.3 < float((bodies(64, 64).abs() > 0.1).float().mean()) < 0.7
