from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.physics import fft2c
from core_mri.physics.bias_field import NUM_COEFFICIENTS, apply_bias, bias_field
from core_mri.physics.blur import gaussian_blur, sharpen
from core_mri.physics.low_field import hamming, low_field
from core_mri.physics.phantoms import phantom_volume
from core_mri.physics.rician import rician_noise
from core_mri.physics.ringing import box, ringing
from pretrain.augmentations import AUGMENTATIONS, NUM_DRAWS, augment
from pretrain.augmentations.gamma import adjust_gamma
from pretrain.augmentations.undersampling import draw_lines, zero_filled
from pretrain.augmentations.window import adjust_brightness, adjust_contrast
from pretrain.config import ViewsConfig

NEVER = {augmentation.probability: 0.0 for augmentation in AUGMENTATIONS.values()}


def images(number=3, size=32, seed=0):
    return torch.rand(number, size, size, generator=torch.Generator().manual_seed(seed))


def column(*values):
    return torch.tensor(values)[:, None, None]


def uniform(number, seed=0):
    return np.random.default_rng(seed).random((number, NUM_DRAWS))


def only(name, **changes):
    """A configuration in which one augmentation is sure and the others do not happen."""
    return replace(ViewsConfig(), **(NEVER | {AUGMENTATIONS[name].probability: 1.0} | changes))


def augmented(before, draws, config):
    after = before.clone()
    augment(after, draws, config)
    return after


class TestChain:
    def test_probability_zero_is_the_identity(self):
        before = images()
        after = augmented(before, uniform(3), replace(ViewsConfig(), **NEVER))
        assert torch.equal(after, before)

    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_each_changes_views_and_keeps_them_in_range(self, name):
        before = images()
        after = augmented(before, uniform(3), only(name))
        assert (after != before).any((1, 2)).all()
        assert after.isfinite().all()
        assert after.min() >= 0
        assert after.max() <= 1

    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_a_view_does_not_depend_on_the_others(self, name):
        before, draws, config = images(5), uniform(5), only(name)
        together = augmented(before, draws, config)
        for view in range(5):
            alone = augmented(before[view : view + 1], draws[view : view + 1], config)
            torch.testing.assert_close(together[view : view + 1], alone, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_probability_says_how_many_views_are_changed(self, name):
        config = only(name, **{AUGMENTATIONS[name].probability: 0.3})
        before = images(400, 16)
        changed = (augmented(before, uniform(400), config) != before).any((1, 2))
        assert changed.float().mean() == pytest.approx(0.3, abs=0.08)

    @pytest.mark.parametrize(
        ("name", "neutral"),
        [
            ("gamma", {"gamma": (1.0, 1.0)}),
            ("bias field", {"bias_ratio": (1.0, 1.0)}),
            ("ringing", {"ringing_kept": (1.0, 1.0)}),
            ("noise", {"noise_sigma": (0.0, 0.0)}),
            ("sharpen", {"sharpen_amount": (0.0, 0.0)}),
            ("window", {"brightness": 0.0, "contrast": 0.0}),
        ],
    )
    def test_the_neutral_end_of_a_range_changes_nothing(self, name, neutral):
        before = images()
        after = augmented(before, uniform(3), only(name, **neutral))
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)

    def test_draws_of_one_augmentation_leave_the_others_alone(self):
        """A new probability of the noise does not change which views are blurred."""
        before, draws = images(20), uniform(20)
        a = augmented(before, draws, only("blur", blur_probability=0.5))
        b = augmented(before, draws, only("blur", blur_probability=0.5, noise_probability=0.3))
        same = (a == b).all((1, 2)).float().mean()
        assert 0.4 < same < 0.95


class TestTorchvision:
    @pytest.fixture
    def v2(self):
        return pytest.importorskip("torchvision.transforms.v2.functional")

    def test_gamma(self, v2):
        got = adjust_gamma(images(), column(0.5, 1.0, 2.0))
        for view, before, gamma in zip(got, images(), (0.5, 1.0, 2.0), strict=True):
            expected = v2.adjust_gamma(before[None], gamma)[0]
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)

    def test_brightness(self, v2):
        got = adjust_brightness(images(), column(0.5, 1.0, 1.5))
        for view, before, factor in zip(got, images(), (0.5, 1.0, 1.5), strict=True):
            expected = v2.adjust_brightness(before[None], factor)[0]
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)

    def test_contrast(self, v2):
        got = adjust_contrast(images(), column(0.5, 1.0, 1.5))
        for view, before, factor in zip(got, images(), (0.5, 1.0, 1.5), strict=True):
            expected = v2.adjust_contrast(before[None], factor)[0]
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)

    def test_blur(self, v2):
        got = gaussian_blur(images(), column(0.1, 1.0, 2.5), 13)
        for view, before, sigma in zip(got, images(), (0.1, 1.0, 2.5), strict=True):
            expected = v2.gaussian_blur(before[None], [27, 27], [sigma, sigma])[0]
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)

    def test_sharpening_adds_what_the_blur_removes(self, v2):
        got = sharpen(images(), column(0.0, 0.5, 1.0))
        for view, before, amount in zip(got, images(), (0.0, 0.5, 1.0), strict=True):
            blurred = v2.gaussian_blur(before[None], [25, 25], [1.0, 1.0])[0]
            expected = (before + amount * (before - blurred)).clamp(0, 1)
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


class TestBiasField:
    def test_positive_of_mean_one_and_of_the_ratio_asked_for(self):
        coefficients = 2 * torch.rand(50, NUM_COEFFICIENTS, generator=torch.Generator()) - 1
        ratio = torch.linspace(1, 4, 50)[:, None, None]
        field = bias_field(coefficients, ratio, 48)
        assert field.min() > 0
        torch.testing.assert_close(field.mean((-2, -1)), torch.ones(50))
        torch.testing.assert_close(field.amax((-2, -1)) / field.amin((-2, -1)), ratio[:, 0, 0])

    def test_is_smooth(self):
        coefficients = 2 * torch.rand(20, NUM_COEFFICIENTS, generator=torch.Generator()) - 1
        field = bias_field(coefficients, torch.full((20, 1, 1), 3.0), 64)
        power = fft2c(field).abs().square()
        low = power[:, 24:41, 24:41].sum((-2, -1)) / power.sum((-2, -1))
        assert low.min() > 0.99

    def test_pictures_that_get_too_bright_are_windowed_not_cut(self):
        field = torch.tensor([[[0.5, 1.5]]])
        got = apply_bias(torch.tensor([[[1.0, 0.8]]]), field)
        torch.testing.assert_close(got, torch.tensor([[[0.5 / 1.2, 1.0]]]))


class TestRicianNoise:
    @pytest.mark.parametrize("signal", [0.0, 0.05, 0.3])
    def test_moments(self, signal):
        """``E[y^2] = x^2 + 2 s^2``; in air the mean is ``s sqrt(pi/2)``, std ``s sqrt(2-pi/2)``."""
        sigma = 0.05
        got = rician_noise(
            torch.full((20, 64, 64), signal), torch.full((20, 1, 1), sigma), list(range(20))
        )
        assert got.square().mean() == pytest.approx(signal**2 + 2 * sigma**2, rel=0.02)
        ratio = 0.5 * (signal / sigma) ** 2  # Laguerre polynomial L_1/2(-x^2 / (2 s^2))
        bessel = [float(torch.special.i0e(torch.tensor(ratio / 2))),
                  float(torch.special.i1e(torch.tensor(ratio / 2)))]  # fmt: skip
        laguerre = (1 + ratio) * bessel[0] + ratio * bessel[1]
        mean = sigma * math.sqrt(math.pi / 2) * laguerre
        assert got.mean() == pytest.approx(mean, rel=0.01)
        variance = 2 * sigma**2 + signal**2 - mean**2
        assert got.var() == pytest.approx(variance, rel=0.03)

    def test_views_have_independent_noise(self):
        got = rician_noise(torch.zeros(2, 64, 64), torch.ones(2, 1, 1), [1, 2]).flatten(1)
        assert abs(float(torch.corrcoef(got)[0, 1])) < 0.05


class TestRinging:
    def test_nothing_is_left_outside_the_window(self):
        """Far from 0 the magnitude changes no sign, so its k-space is that of the product."""
        before = 0.5 + 0.2 * images()
        kept = torch.tensor([[0.5, 0.8], [0.3, 1.0], [0.6, 0.6]])[..., None]
        got = fft2c(ringing(before, kept))
        rows, columns = (torch.fft.fftshift(part, -1) for part in box(kept, 32))
        inside = rows[:, :, None] & columns[:, None, :]
        assert got[~inside].abs().max() < 1e-5
        torch.testing.assert_close(got[inside], fft2c(before)[inside], atol=1e-4, rtol=0)

    def test_the_window_is_symmetric_about_zero(self):
        for size in (16, 17):
            for inside in box(torch.tensor([[[0.4], [0.7]]]), size):
                assert inside[0, 0]
                assert torch.equal(inside[:, 1:], inside[:, 1:].flip(1))

    def test_an_edge_overshoots_by_nine_percent(self):
        step = torch.zeros(1, 256, 256)
        step[:, :, 64:192] = 0.5
        got = ringing(step, torch.tensor([[[1.0], [0.25]]]))
        assert got.max() == pytest.approx(0.5 * 1.09, abs=0.01)


class TestLowField:
    def test_resolution_is_lost(self):
        before = images(1)
        got = low_field(before, column(0.5), column(0.0), [0])
        outside = torch.fft.fftshift(hamming(torch.tensor([[0.5]]), 32)[0]) == 0
        assert int(outside.sum()) == 32 - 17
        assert fft2c(got)[0, outside].abs().max() < 1e-5

    def test_noise_has_the_level_asked_for_and_the_grain_of_the_resolution(self):
        sigma = 0.04
        got = low_field(torch.zeros(20, 64, 64), torch.full((20, 1, 1), 0.5),
                        torch.full((20, 1, 1), sigma), list(range(20)))  # fmt: skip
        assert got.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.03)
        neighbors = torch.corrcoef(
            torch.stack([got[:, :, :-1].flatten(), got[:, :, 1:].flatten()])
        )[0, 1]
        assert neighbors > 0.5


class TestUndersampling:
    def lines(self, size=64, number=4):
        return draw_lines(
            size,
            np.linspace(1.5, 4, number),
            0.16,
            random=np.arange(number) % 2 == 0,
            seeds=range(number),
        )

    @pytest.mark.parametrize("along_rows", [True, False])
    def test_kept_lines_are_equal_and_the_others_zero(self, along_rows):
        before, lines = images(4, 64), self.lines()
        flags = torch.full((4, 1, 1), along_rows)
        got, full = fft2c(zero_filled(before, lines, flags)), fft2c(before)
        if along_rows:
            got, full = got.mT, full.mT
        mask = lines[:, None].expand_as(got)
        torch.testing.assert_close(got[mask], full[mask], atol=1e-4, rtol=0)
        assert got[~mask].abs().max() < 1e-5

    def test_center_is_full_and_acceleration_as_asked_for(self):
        lines = self.lines(256, 40)
        center = round(256 * 0.16)
        start = (256 - center + 1) // 2
        assert lines[:, start : start + center].all()
        found = 256 / lines.sum(1)
        np.testing.assert_allclose(found, np.linspace(1.5, 4, 40), rtol=0.25)

    @pytest.mark.parametrize("size", [16, 24, 32, 64, 96, 224, 512])
    @pytest.mark.parametrize("fastest", [1.0, 3.0, 5.0])
    def test_every_size_and_acceleration_has_a_mask(self, size, fastest):
        config = only("undersampling", undersampling_acceleration=(1.0, fastest))
        before = images(6, size)
        assert augmented(before, uniform(6), config).isfinite().all()


def test_anatomy_survives_the_defaults():
    """Every default view of a phantom stays more like itself than like any other phantom."""
    slices = []
    for region in ("brain", "knee"):
        for subject in range(3):
            array = np.asarray(phantom_volume(region, subject, size=64, num_slices=5)[0].array)
            array = np.moveaxis(array, int(np.argmin(array.shape)), 0)[2].astype(np.float32)
            slices.append(torch.from_numpy(array / array.max()))
    before = torch.stack(slices)
    for seed in range(20):
        after = augmented(before, uniform(6, seed), ViewsConfig())
        found = torch.corrcoef(torch.cat([before, after]).flatten(1))[:6, 6:]
        assert torch.equal(found.argmax(0), torch.arange(6))
