from __future__ import annotations

import numpy as np
import pytest
import torch

from core_mri.slice_grid import image_to_square, mask_to_square, square_to_classes

SHAPES = [(32, 32), (20, 32), (33, 24), (7, 32)]


def one_hot(masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(masks, num_classes).movedim(-1, 1).float()


def disc(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    inside = (y - rows * 0.4) ** 2 + (x - columns * 0.6) ** 2 < (min(rows, columns) * 0.3) ** 2
    return inside[None].astype(np.uint8)


class TestRoundTrip:
    @pytest.mark.parametrize(("rows", "columns"), SHAPES)
    def test_exact_when_only_padding_is_needed(self, rows, columns):
        classes = np.random.default_rng(0).integers(0, 3, (4, rows, columns)).astype(np.uint8)
        square = mask_to_square(classes, max(rows, columns))
        assert np.array_equal(square_to_classes(one_hot(square, 3), rows, columns), classes)

    @pytest.mark.parametrize(("rows", "columns"), [(96, 96), (80, 120), (111, 64)])
    def test_places_are_kept_when_resized(self, rows, columns):
        classes = disc(rows, columns)
        back = square_to_classes(one_hot(mask_to_square(classes, 64), 2), rows, columns)
        centers = [np.argwhere(mask[0]).mean(0) for mask in (classes, back)]
        assert np.abs(centers[0] - centers[1]).max() < 0.3  # pixels
        overlap = 2 * (classes & back).sum() / (classes.sum() + back.sum())
        assert overlap > 0.97

    def test_image_and_mask_take_the_same_way(self):
        classes = disc(80, 120)
        image = image_to_square(classes.astype(np.float32), 48)
        mask = mask_to_square(classes, 48)
        assert ((image[:, 0] > 0.5) == (mask > 0)).float().mean() > 0.99


class TestImageToSquare:
    def test_stays_in_range_and_shape(self):
        image = np.random.default_rng(0).random((3, 50, 70)).astype(np.float32)
        square = image_to_square(image, 32)
        assert square.shape == (3, 1, 32, 32)
        assert square.min() >= 0
        assert square.max() <= 1
