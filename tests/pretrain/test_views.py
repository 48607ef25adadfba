from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.errors import DataError
from data_registry.slices import StoredSlice, windowed
from pretrain.config import ViewsConfig
from pretrain.crops import BOX_DRAWS, crop_resize, draw_boxes, resize_by_products
from pretrain.upload import num_bytes, upload
from pretrain.views import MIN_SIDE, make_views, pad_slices

CPU = torch.device("cpu")
CONFIG = ViewsConfig(global_size=32, local_size=16, num_local=3)
NOTHING = {name: 0.0 for name in vars(CONFIG) if name.endswith("probability")}
PLAIN = replace(CONFIG, **NOTHING)
ALWAYS = replace(CONFIG, **dict.fromkeys(NOTHING, 1.0))
SIZES = [(40, 56), (64, 64), (96, 33), (20, 24)]


def slices(sizes=SIZES, seed=0):
    random = np.random.default_rng(seed)
    return [random.random(size, dtype=np.float32) for size in sizes]


def stored(image, number=0, region="brain", plane="axial"):
    return StoredSlice(image, 0.0, 1.0, f"volume{number}", number, region, plane)


def views_of(images, samples, config=CONFIG, seed=0, **options):
    found = [stored(image, number) for number, image in enumerate(images)]
    return make_views(found, np.asarray(samples), config, seed=seed, device=CPU, **options)


class TestDeterminism:
    @pytest.mark.parametrize("config", [CONFIG, ALWAYS])
    def test_same_seed_same_views_in_any_batch(self, config):
        images = slices()
        together = views_of(images, [5, 6, 7, 8], config)
        for place, sample in enumerate([5, 6, 7, 8]):
            alone = views_of([images[place]], [sample], config)
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

    def test_one_damaged_slice_does_not_leak_into_its_neighbors(self):
        images = slices()
        expected = views_of(images, range(4), ALWAYS)
        images[2] = np.full_like(images[2], np.nan)
        got = views_of(images, range(4), ALWAYS)
        for whole, part in zip(expected[:2], got[:2], strict=True):
            torch.testing.assert_close(whole[[0, 1, 3]], part[[0, 1, 3]])


class TestShapes:
    @pytest.mark.parametrize("config", [CONFIG, ALWAYS, PLAIN])
    def test_shapes_range_and_count_of_upsampled_slices(self, config):
        views = views_of(slices(), range(4), config)
        assert views.global_views.shape == (4, 2, 1, 32, 32)
        assert views.local_views.shape == (4, 3, 1, 16, 16)
        assert views.num_upsampled == 1
        for part in views[:2]:
            assert part.min() >= 0
            assert part.max() <= 1
            assert part.isfinite().all()

    def test_no_local_views_and_one_global_view(self):
        views = views_of(slices(), range(4), replace(CONFIG, num_local=0, num_global=1))
        assert views.local_views.numel() == 0
        assert views.global_views.shape == (4, 1, 1, 32, 32)

    def test_a_black_slice_stays_finite(self):
        views = views_of([np.zeros((40, 40), np.float32)], [0], ALWAYS)
        assert all(part.isfinite().all() for part in views[:2])


class TestUpload:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32", "int32"])
    def test_scaling_on_the_device_equals_the_window(self, dtype):
        """``low`` far from 0, as of images with an offset."""
        random = np.random.default_rng(0)
        images = [random.integers(10, 200, size).astype(dtype) for size in SIZES]
        scale, low, high = 0.37, 9.1, 61.5
        batch = upload(
            [StoredSlice(i, low / scale, scale / (high - low), "v", 0, "", "") for i in images], CPU
        )
        for image, row in zip(images, batch, strict=True):
            expected = windowed(image * np.float64(scale), low, high)
            got = row[: image.shape[0], : image.shape[1]].numpy()
            np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_types_may_be_mixed(self):
        images = [np.full((18, 17), 3, np.uint8), np.full((17, 19), -3, np.int16)]
        batch = upload([StoredSlice(i, -6.0, 0.1, "v", 0, "", "") for i in images], CPU)
        assert float(batch[0, :18, :17].mean()) == pytest.approx(0.9)
        assert float(batch[1, :17, :19].mean()) == pytest.approx(0.3)

    def test_bytes_are_those_that_are_stored(self):
        images = [np.zeros((20, 30), dtype) for dtype in ("uint8", "int16", "float32", "int32")]
        assert num_bytes([stored(image) for image in images]) == 600 * (1 + 2 + 4 + 4)


class TestCrops:
    @pytest.mark.parametrize("resize", [crop_resize, resize_by_products])
    @pytest.mark.parametrize("size", [8, 32, 128])
    def test_equals_torchvision(self, size, resize):
        v2 = pytest.importorskip("torchvision.transforms.v2.functional")
        images = slices()
        boxes = torch.tensor(
            [[[3, 5, 30, 40], [0, 0, 40, 56]], [[10, 20, 7, 9], [0, 0, 64, 64]],
             [[50, 1, 46, 31], [0, 0, 96, 33]], [[4, 4, 16, 20], [0, 0, 20, 24]]]
        )  # fmt: skip
        got = resize(pad_slices(images), boxes, size)
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

    def test_boxes_lie_inside_and_have_the_areas_and_shapes_asked_for(self):
        shapes = np.array([[300, 400], [400, 300], [320, 320]])
        uniform = np.random.default_rng(0).random((3, 2000, BOX_DRAWS))
        boxes = draw_boxes(shapes, uniform, (0.2, 0.8), (0.75, 4 / 3))
        top, left, height, width = np.moveaxis(boxes, -1, 0)
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height <= shapes[:, :1]).all()
        assert (left + width <= shapes[:, 1:]).all()
        area = height * width / shapes.prod(1, keepdims=True)
        assert area.min() > 0.19
        assert area.max() < 0.81
        assert area.mean() == pytest.approx(0.49, abs=0.03)  # large ones fit less often
        assert (width / height).min() > 0.73
        assert (width / height).max() < 1.36
        assert top.min() == 0
        assert (top + height == shapes[:, :1]).any()

    def test_a_crop_that_never_fits_becomes_a_square(self):
        uniform = np.random.default_rng(0).random((1, 5, BOX_DRAWS))
        boxes = draw_boxes(np.array([[20, 400]]), uniform, (0.9, 1.0), (1.0, 1.0))
        assert (boxes[..., 2:] == 20).all()


class TestFlips:
    def test_none_by_default(self):
        """Columns that grow to the right grow to the right in every view."""
        image = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
        for sample in range(10):
            views = views_of([image], [sample], PLAIN).global_views[0, :, 0]
            assert (views.diff(dim=-1) > 0).all()

    def test_when_asked(self):
        image = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
        views = views_of([image], [0], replace(PLAIN, flip_columns=1.0)).global_views
        assert (views.diff(dim=-1) < 0).all()
        image = image.T.copy()
        views = views_of([image], [0], replace(PLAIN, flip_rows=1.0)).global_views
        assert (views.diff(dim=-2) < 0).all()

    def test_only_where_laterality_does_not_matter(self):
        image = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
        config = replace(PLAIN, flip_columns=1.0, flip_where=("*/sagittal", "knee/*"))
        kinds = [("brain", "axial"), ("brain", "sagittal"), ("knee", "coronal")]
        found = [stored(image, region=region, plane=plane) for region, plane in kinds]
        views = make_views(found, np.arange(3), config, seed=0, device=CPU).global_views
        assert (views[0].diff(dim=-1) > 0).all()
        assert (views[1:].diff(dim=-1) < 0).all()


class TestAdjacentSlices:
    def test_second_global_and_every_other_local_view_show_the_other_slice(self):
        own, other = np.full((40, 40), 0.25, np.float32), np.full((30, 50), 0.75, np.float32)
        views = views_of([own, own], [0, 1], PLAIN, adjacent=[stored(other)] * 2)
        for part in views[:2]:
            torch.testing.assert_close(part[:, 0::2], torch.full_like(part[:, 0::2], 0.25))
            torch.testing.assert_close(part[:, 1::2], torch.full_like(part[:, 1::2], 0.75))

    def test_an_equal_slice_gives_the_same_views(self):
        images = slices()
        a = views_of(images, range(4))
        b = views_of(images, range(4), adjacent=[stored(image) for image in images])
        assert torch.equal(a.global_views, b.global_views)
        assert torch.equal(a.local_views, b.local_views)


class TestRefusals:
    def test_slices_below_the_shortest_side_are_named(self):
        images = slices([(40, 40), (MIN_SIDE - 1, 40)])
        with pytest.raises(DataError, match="volume volume1, slice 1: 15x40 px") as caught:
            views_of(images, [0, 1])
        assert caught.value.code == "DATA-09"

    def test_the_shortest_side_is_allowed(self):
        assert views_of(slices([(MIN_SIDE, MIN_SIDE)]), [0]).num_upsampled == 1
