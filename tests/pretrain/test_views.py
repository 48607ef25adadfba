from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.errors import DataError
from pretrain.config import ViewsConfig
from pretrain.views import MIN_SIDE, crop_resize, make_views, pad_slices

CPU = torch.device("cpu")
CONFIG = ViewsConfig(global_size=32, local_size=16, num_local=3)
PLAIN = replace(CONFIG, intensity_probability=0.0, blur_probability=0.0, noise_probability=0.0)
SIZES = [(40, 56), (64, 64), (96, 33), (20, 24)]


def slices(sizes=SIZES, seed=0):
    random = np.random.default_rng(seed)
    return [random.random(size, dtype=np.float32) for size in sizes]


def views_of(images, samples, config=CONFIG, seed=0):
    names = [f"slice {i}" for i in range(len(images))]
    return make_views(images, np.asarray(samples), config, names=names, seed=seed, device=CPU)


class TestDeterminism:
    def test_same_seed_same_views_in_any_batch(self):
        """Only the padding differs between the batches, so all but rounding must agree."""
        images = slices()
        together = views_of(images, [5, 6, 7, 8])
        for place, sample in enumerate([5, 6, 7, 8]):
            alone = views_of([images[place]], [sample])
            for whole, part in zip(together[:2], alone[:2], strict=True):
                torch.testing.assert_close(whole[place], part[0], atol=1e-5, rtol=0)

    def test_repeating_a_batch_is_bit_identical(self):
        a, b = views_of(slices(), range(4)), views_of(slices(), range(4))
        assert torch.equal(a.global_views, b.global_views)
        assert torch.equal(a.local_views, b.local_views)

    def test_samples_and_seeds_differ(self):
        image = slices([(64, 64)])[0]
        a, b = views_of([image, image], [0, 1]).global_views
        assert not torch.allclose(a, b)
        assert not torch.allclose(a, views_of([image], [0], seed=1).global_views[0])


class TestShapes:
    def test_shapes_range_and_count_of_upsampled_slices(self):
        views = views_of(slices(), range(4))
        assert views.global_views.shape == (4, 2, 1, 32, 32)
        assert views.local_views.shape == (4, 3, 1, 16, 16)
        assert views.num_upsampled == 1
        for part in views[:2]:
            assert part.min() >= 0
            assert part.max() <= 1
            assert part.isfinite().all()

    def test_no_local_views(self):
        assert views_of(slices(), range(4), replace(CONFIG, num_local=0)).local_views.numel() == 0


class TestResize:
    @pytest.mark.parametrize("size", [8, 32, 128])
    def test_equals_torchvision(self, size):
        v2 = pytest.importorskip("torchvision.transforms.v2.functional")
        images = slices()
        boxes = torch.tensor(
            [[[3, 5, 30, 40], [0, 0, 40, 56]], [[10, 20, 7, 9], [0, 0, 64, 64]],
             [[50, 1, 46, 31], [0, 0, 96, 33]], [[4, 4, 16, 20], [0, 0, 20, 24]]]
        )  # fmt: skip
        got = crop_resize(pad_slices(images), boxes, size)
        for image, own, row in zip(images, boxes.tolist(), got, strict=True):
            for box, view in zip(own, row, strict=True):
                expected = v2.resized_crop(
                    torch.from_numpy(image)[None], *box, [size, size], antialias=True
                )
                torch.testing.assert_close(view[None], expected, atol=1e-5, rtol=0)

    def test_a_constant_stays_constant(self):
        image = np.full((50, 41), 0.37, dtype=np.float32)
        got = crop_resize(pad_slices([image]), torch.tensor([[[5, 5, 40, 20]]]), 16)
        torch.testing.assert_close(got, torch.full_like(got, 0.37))


class TestIntensities:
    def test_nothing_happens_at_probability_zero(self):
        image = np.full((40, 40), 0.37, dtype=np.float32)
        for part in views_of([image], [0], PLAIN)[:2]:
            torch.testing.assert_close(part, torch.full_like(part, 0.37))

    def test_no_flips_by_default(self):
        """Columns that grow to the right grow to the right in every view."""
        image = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
        for sample in range(10):
            views = views_of([image], [sample], PLAIN).global_views[0, :, 0]
            assert (views.diff(dim=-1) > 0).all()

    def test_flips_when_asked(self):
        image = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
        views = views_of([image], [0], replace(PLAIN, flip_columns=1.0)).global_views
        assert (views.diff(dim=-1) < 0).all()
        image = image.T.copy()
        views = views_of([image], [0], replace(PLAIN, flip_rows=1.0)).global_views
        assert (views.diff(dim=-2) < 0).all()

    def test_gamma(self):
        image = np.full((40, 40), 0.5, dtype=np.float32)
        config = replace(
            PLAIN, intensity_probability=1.0, gamma=(2.0, 2.0), contrast=0.0, brightness=0.0
        )
        views = views_of([image], [0], config).global_views
        torch.testing.assert_close(views, torch.full_like(views, 0.25))

    def test_blur_keeps_the_mean_and_removes_detail(self):
        image = slices([(64, 64)])[0]
        config = replace(PLAIN, blur_probability=1.0, blur_sigma_px=(1.5, 1.5))
        sharp = views_of([image], [0], PLAIN).global_views
        blurred = views_of([image], [0], config).global_views
        assert float(blurred.mean()) == pytest.approx(float(sharp.mean()), abs=0.01)
        assert blurred.std() < 0.5 * sharp.std()

    def test_noise_is_rician(self):
        """Where there is no signal, magnitudes are Rayleigh: mean sigma * sqrt(pi / 2)."""
        image = np.zeros((64, 64), dtype=np.float32)
        config = replace(PLAIN, noise_probability=1.0, noise_sigma=(0.1, 0.1))
        found = torch.stack([views_of([image], [i], config).global_views for i in range(10)])
        assert found.mean() == pytest.approx(0.1 * (np.pi / 2) ** 0.5, rel=0.02)


class TestRefusals:
    def test_slices_below_the_shortest_side_are_named(self):
        images = slices([(40, 40), (MIN_SIDE - 1, 40)])
        with pytest.raises(DataError, match="slice 1: 15x40 px") as caught:
            views_of(images, [0, 1])
        assert caught.value.code == "DATA-09"

    def test_the_shortest_side_is_allowed(self):
        assert views_of(slices([(MIN_SIDE, MIN_SIDE)]), [0]).num_upsampled == 1
