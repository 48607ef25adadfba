from __future__ import annotations

import torch

from downstream.segmentation.augment import STRENGTHS, Augmentation, augment


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


class TestStrong:
    def changed(self, which):
        images, masks = example()
        drawn = Augmentation(6, 3, strength=STRENGTHS["strong"])
        chosen = torch.tensor(which)
        return drawn.images(images[chosen], chosen), drawn.masks(masks[chosen], chosen)

    def test_bends_and_adds_noise(self):
        images, masks = self.changed(range(6))
        straight = Augmentation(6, 3)
        assert not torch.equal(masks, straight.masks(example()[1], torch.arange(6)))
        assert images[:, 0][masks == 0].count_nonzero() > 100
        assert ((images[:, 0] > 0.5) == (masks > 0)).float().mean() > 0.95
        assert 0 <= images.min() <= images.max() <= 1

    def test_a_change_is_its_own_whatever_the_batch(self):
        images, masks = self.changed(range(6))
        for own, whole in zip(self.changed([4, 1]), (images, masks), strict=True):
            assert torch.equal(own, whole[[4, 1]])
