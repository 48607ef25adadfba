from __future__ import annotations

import torch

from downstream.segmentation.augment import augment


def example() -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.zeros(6, 32, 32, dtype=torch.int64)
    masks[:, 8:20, 10:24] = 2
    return (masks > 0).float()[:, None], masks


class TestAugment:
    def test_a_function_of_the_seed(self):
        first, second, other = (augment(*example(), seed) for seed in (1, 1, 2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert not torch.equal(first[0], other[0])

    def test_image_and_mask_move_together(self):
        images, masks = augment(*example(), 3)
        assert ((images[:, 0] > 0.5) == (masks > 0)).float().mean() > 0.97

    def test_slices_move_differently_and_little(self):
        _, masks = augment(*example(), 3)
        assert not torch.equal(masks[0], masks[1])
        shares = (masks > 0).float().mean((1, 2))
        assert (shares / (example()[1] > 0).float().mean() - 1).abs().max() < 0.4

    def test_range_and_classes_stay(self):
        images, masks = augment(torch.rand(4, 1, 32, 32), example()[1][:4], 0)
        assert images.min() >= 0
        assert images.max() <= 1
        assert set(masks.unique().tolist()) <= {0, 2}
