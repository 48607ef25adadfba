from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.models.segmenter import Inference
from downstream.segmentation.choose import Validated, choose_consistency
from downstream.segmentation.examples import labelled_slices

SPACING = (3.0, 1.0, 1.0)


def volume(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    return images, (images[0] if images.ndim == 4 else images).round().astype(np.uint8)


class TestExamples:
    def test_a_whole_volume(self, recipe):
        images, masks = volume(6, 32, 32)
        (example,) = labelled_slices(images[None], masks, SPACING, recipe)
        assert torch.equal(example.images[:, 0], torch.from_numpy(images))
        assert torch.equal(example.masks, torch.from_numpy(masks).long())
        assert example.windows.tolist() == [[i] for i in range(6)]
        assert example.gap_mm == 3.0

    def test_single_slices_bring_their_neighbours_once(self, recipe):
        images, masks = volume(9, 32, 32)
        recipe = replace(recipe, neighbours=1)
        (example,) = labelled_slices(images[None], masks, SPACING, recipe, slices=[0, 4, 5])
        used = [0, 1, 3, 4, 5, 6]
        assert torch.equal(example.images[:, 0], torch.from_numpy(images[used]))
        assert torch.equal(example.masks, torch.from_numpy(masks[[0, 4, 5]]).long())
        assert [[used[i] for i in row] for row in example.windows.tolist()] == [
            [0, 0, 1],
            [3, 4, 5],
            [4, 5, 6],
        ]
        assert example.gap_mm is None

    def test_sequences_stay_in_order(self, recipe):
        images, masks = volume(2, 4, 32, 32)
        (example,) = labelled_slices(images, masks, SPACING, recipe)
        assert torch.equal(example.images, torch.from_numpy(images).swapaxes(0, 1))

    def test_slices_larger_than_the_window_are_cut(self, recipe):
        images, masks = volume(2, 60, 32)
        found = labelled_slices(images[None], masks, SPACING, replace(recipe, pixel_mm=1.0))
        assert len(found) == 3
        whole = torch.from_numpy(masks).long()
        assert torch.equal(found[0].masks, whole[:, :32])
        assert torch.equal(found[-1].masks, whole[:, -32:])

    @pytest.mark.parametrize("pixel_mm", [0.0, 2.0])
    def test_image_and_mask_share_the_grid(self, recipe, pixel_mm):
        masks = np.zeros((1, 60, 50), dtype=np.uint8)
        masks[0, 12:40, 8:30] = 1
        (example,) = labelled_slices(
            masks.astype(np.float32)[None], masks, SPACING, replace(recipe, pixel_mm=pixel_mm)
        )
        agree = (example.images[:, 0] > 0.5) == (example.masks > 0)
        assert agree.float().mean() > 0.98


class TestChoose:
    def noisy(self, gap_mm: float) -> Validated:
        """A block, and slices whose votes are noisy on their own."""
        masks = np.zeros((8, 24, 24), dtype=np.uint8)
        masks[:, 6:18, 6:18] = 1
        clean = torch.from_numpy(masks).float()
        generator = torch.Generator().manual_seed(0)
        votes = (clean + torch.randn(8, 24, 24, generator=generator)).sigmoid()
        return Validated(torch.stack([1.2 - votes, votes], 1), masks, gap_mm)

    def test_smoothing_is_taken_where_it_helps(self):
        assert choose_consistency([self.noisy(1.0)], Inference(), 1).smoothing_mm > 0

    def test_not_where_slices_are_too_far_apart(self):
        assert choose_consistency([self.noisy(50.0)], Inference(), 1).smoothing_mm == 0

    def test_islands_are_removed_where_it_helps(self):
        masks = np.zeros((3, 30, 30), dtype=np.uint8)
        masks[:, 5:15, 5:15] = 1
        found = masks.copy()
        found[:, 22:24, 22:24] = 1
        both = torch.from_numpy(np.stack([1 - found, found], 1)).float()
        assert choose_consistency([Validated(both, masks, 1.0)], Inference(), 1).smallest_island

    def test_nothing_without_volumes_or_gain(self):
        kept = Inference(mirror=True)
        assert choose_consistency([], kept, 1) is kept
        masks = np.zeros((3, 8, 8), dtype=np.uint8)
        masks[:, 2:6, 2:6] = 1
        perfect = torch.from_numpy(np.stack([1 - masks, masks], 1)).float()
        assert choose_consistency([Validated(perfect, masks, 1.0)], kept, 1) is kept
