from __future__ import annotations

import numpy as np
import pytest

from pretrain.config import MaskingConfig
from pretrain.masking import block_mask, inverse_mask, sample_masks
from pretrain.sampler import MASKS, random_stream


class TestDeterminism:
    def test_masks_of_a_sample_do_not_depend_on_the_batch(self):
        config = MaskingConfig()
        together = sample_masks(np.arange(10), (14, 14), config, seed=3)
        alone = sample_masks(np.array([7]), (14, 14), config, seed=3)
        assert np.array_equal(together[7], alone[0])

    def test_samples_and_seeds_differ(self):
        config = MaskingConfig(probability=1.0)
        masks = sample_masks(np.arange(2), (14, 14), config, seed=0)
        other = sample_masks(np.arange(2), (14, 14), config, seed=1)
        assert not np.array_equal(masks[0], masks[1])
        assert not np.array_equal(masks, other)


class TestRatio:
    @pytest.mark.parametrize("grid", [(2, 2), (2, 3), (4, 4), (8, 8), (14, 14), (14, 9)])
    @pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3, 0.5, 0.99])
    def test_exactly_the_number_asked_for(self, grid, ratio):
        size = grid[0] * grid[1]
        expected = min(max(round(ratio * size), 1), size - 1)
        for sample in range(20):
            random = random_stream(0, sample, MASKS)
            assert block_mask(grid, ratio, MaskingConfig(), random).sum() == expected
            assert inverse_mask(grid, ratio, random).sum() == expected

    def test_a_chosen_view_hides_something_and_shows_something(self):
        masks = sample_masks(np.arange(200), (2, 2), MaskingConfig(probability=1.0), seed=0)
        assert masks.any((2, 3)).all()
        assert not masks.all((2, 3)).any()

    def test_probability_says_how_many_views_are_chosen(self):
        masks = sample_masks(np.arange(1000), (4, 4), MaskingConfig(probability=0.5), seed=0)
        assert masks.any((2, 3)).mean() == pytest.approx(0.5, abs=0.05)
        none = sample_masks(np.arange(50), (4, 4), MaskingConfig(probability=0.0), seed=0)
        assert not none.any()


class TestBlocks:
    def test_masked_patches_stand_together(self):
        """Neighbors of a masked patch are masked far more often than in a random mask."""
        config = MaskingConfig(probability=1.0, ratio=(0.3, 0.3))
        masks = sample_masks(np.arange(100), (14, 14), config, seed=0).astype(float)
        together = (masks[..., 1:] * masks[..., :-1]).mean() / masks.mean()
        assert together > 0.5  # 0.3 when masked patches are independent

    def test_an_inverse_mask_shows_one_block_anywhere(self):
        config = MaskingConfig(kind="inverse", probability=1.0, ratio=(0.65, 0.65))
        seen = ~sample_masks(np.arange(1000), (14, 14), config, seed=0)[:, 0]
        together = (seen & np.roll(seen, 1, 2)).mean() / seen.mean()
        assert together > 0.7  # 0.35 when patches are independent
        assert seen.mean(0).min() > 0.28  # corners too: 0.35 each
        assert seen.mean(0).max() < 0.42
