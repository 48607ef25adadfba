"""Simulated k-space: unitary parts, same seed same scan, resolution as a scanner lowers it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core_mri.physics import (
    birdcage_maps,
    ifft2c,
    resampled,
    root_sum_of_squares,
    simulate_kspace,
    smooth_phase,
)

SHAPE = (24, 31)


class TestParts:
    @pytest.mark.parametrize("seed", [None, 3])
    def test_coils_share_one(self, seed: int | None) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        maps = birdcage_maps(5, SHAPE, rng)
        assert maps.shape == (5, *SHAPE)
        torch.testing.assert_close(root_sum_of_squares(maps, 0), torch.ones(SHAPE))

    def test_coils_differ(self) -> None:
        maps = birdcage_maps(6, SHAPE).flatten(1)
        strengths = torch.linalg.svdvals(maps)
        assert strengths[3] > 0.05 * strengths[0]

    def test_phase_has_magnitude_one_and_is_smooth(self) -> None:
        phase = smooth_phase((64, 64), np.random.default_rng(0))
        torch.testing.assert_close(phase.abs(), torch.ones(64, 64))
        assert (phase[1:] - phase[:-1]).abs().max() < 0.5

    def test_without_noise_the_image_comes_back(self) -> None:
        rng = np.random.default_rng(0)
        image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
        maps, phase = birdcage_maps(4, SHAPE, rng), smooth_phase(SHAPE, rng)
        kspace = simulate_kspace(image, maps, phase, 0.0, rng)
        torch.testing.assert_close(root_sum_of_squares(ifft2c(kspace), 0), image)

    def test_noise_has_the_level_that_was_asked(self) -> None:
        rng = np.random.default_rng(0)
        maps, phase = birdcage_maps(8, (64, 64), rng), smooth_phase((64, 64), rng)
        kspace = simulate_kspace(torch.zeros(64, 64), maps, phase, 0.1, rng)
        assert float(kspace.abs().square().mean()) == pytest.approx(0.01, rel=0.02)

    def test_same_seed_same_scan(self) -> None:
        first, second = (
            simulate_kspace(torch.ones(SHAPE), birdcage_maps(3, SHAPE, rng),
                            smooth_phase(SHAPE, rng), 0.1, rng)
            for rng in (np.random.default_rng(5), np.random.default_rng(5))
        )  # fmt: skip
        assert torch.equal(first, second)


class TestResampled:
    def test_smaller_images_are_padded_in_the_middle(self) -> None:
        image = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
        padded = resampled(image, 10)
        assert padded.shape == (10, 10)
        torch.testing.assert_close(padded[2:7, 1:8], image)
        assert float(padded.sum()) == pytest.approx(float(image.sum()))

    def test_larger_images_lose_resolution_not_brightness(self) -> None:
        y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        image = torch.exp(-((y - 32) ** 2 + (x - 32) ** 2) / (2 * 9**2))
        small = resampled(image, 32)
        assert float(small.max()) == pytest.approx(1, abs=0.01)
        assert math.isclose(float(small.sum()) * 4, float(image.sum()), rel_tol=0.01)

    def test_the_whole_image_is_shown(self) -> None:
        image = torch.zeros(40, 20)
        image[:8] = 1
        assert float(resampled(image, 20)[:4, 5:15].mean()) > 0.8
