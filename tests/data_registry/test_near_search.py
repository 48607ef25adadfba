"""Perceptual hashes and the search among them: exact in bits, whatever the hashes are."""

from __future__ import annotations

import numpy as np
import pytest

from data_registry.near_search import MAX_BITS, near_pairs
from data_registry.perceptual_hash import FLIPS, MIN_DETAIL, Hashes, distance, slice_hashes


def smooth(seed: int, shape: tuple[int, int, int] = (6, 96, 80)) -> np.ndarray:
    """Slices of soft blobs in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=shape)
    soft = np.stack([gaussian_filter(s, 6) for s in noise])
    return ((soft - soft.min()) / np.ptp(soft)).astype(np.float32)


def all_pairs(hashes: Hashes, max_bits: int) -> set[tuple[int, int]]:
    return {
        (i, int(j))
        for i in range(len(hashes))
        for j in i + 1 + np.flatnonzero(distance(hashes[i + 1 :], hashes[i]) <= max_bits)
    }


def crowd(seed: int, count: int) -> Hashes:
    """Hashes around a few centers, mirrored at random: many near and many just not near."""
    random = np.random.default_rng(seed)
    centers = random.integers(0, 2**64, 5, dtype=np.uint64)
    hashes = centers[random.integers(5, size=count)] ^ FLIPS[random.integers(4, size=count)]
    for _ in range(4):
        bit = np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
        hashes ^= np.where(random.random(count) < 0.8, bit, np.uint64(0))
    return np.unique(hashes)


class TestHash:
    def test_a_mirrored_slice_has_a_mirrored_hash(self) -> None:
        slices = smooth(0)
        plain, _ = slice_hashes(slices)
        for flip, axes in zip(FLIPS, ((), (2,), (1,), (1, 2)), strict=True):
            mirrored, _ = slice_hashes(np.flip(slices, axes).copy())
            assert np.bitwise_count(mirrored ^ plain ^ flip).max() <= 1
            assert distance(mirrored, plain).max() <= 1

    def test_flips_are_a_group(self) -> None:
        assert {int(a ^ b) for a in FLIPS for b in FLIPS} == {int(f) for f in FLIPS}

    @pytest.mark.parametrize("change", ["darker", "smaller", "noise", "8 bits"])
    def test_what_leaves_the_picture_leaves_the_hash(self, change: str) -> None:
        slices = smooth(1)
        changed = {
            "darker": lambda: slices * 0.5,
            "smaller": lambda: slices.reshape(6, 48, 2, 40, 2).mean(axis=(2, 4)),
            "noise": lambda: slices + np.random.default_rng(0).normal(0, 0.02, slices.shape),
            "8 bits": lambda: np.round(slices * 255) / 255,
        }[change]()
        hashes, _ = slice_hashes(changed.astype(np.float32))
        assert distance(hashes, slice_hashes(slices)[0]).max() <= MAX_BITS

    def test_other_pictures_have_other_hashes(self) -> None:
        hashes = np.concatenate([slice_hashes(smooth(seed))[0] for seed in range(10)])
        assert all_pairs(hashes, 8) == set()

    def test_symmetric_slices_are_stable(self) -> None:
        half = smooth(2)
        slices = (half + half[:, :, ::-1]) / 2
        rounded = (np.round(slices * 255) / 255).astype(np.float32)
        assert distance(slice_hashes(slices)[0], slice_hashes(rounded)[0]).max() <= 1

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    def test_empty_slices_have_no_detail(self, value: float) -> None:
        _, detail = slice_hashes(np.full((2, 40, 1), value, dtype=np.float32))
        assert detail.max() < MIN_DETAIL / 100


class TestSearch:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("max_bits", [0, 2, 4])
    def test_equals_the_comparison_of_all_pairs(self, seed: int, max_bits: int) -> None:
        hashes = crowd(seed, 600)
        found = near_pairs(hashes, max_bits=max_bits)
        pairs = set(map(tuple, found.pairs.tolist()))
        assert pairs == all_pairs(hashes, max_bits)
        assert max_bits < 4 or len(pairs) > 100
        assert (found.bits <= max_bits).all()
        assert len(found.skipped) == 0

    def test_every_place_of_four_bits(self) -> None:
        random = np.random.default_rng(0)
        center = np.uint64(0x0123456789ABCDEF)
        for _ in range(300):
            bits = random.choice(64, 4, replace=False).astype(np.uint64)
            other = center ^ (np.uint64(1) << bits).sum(dtype=np.uint64) ^ random.choice(FLIPS)
            assert len(near_pairs(np.array([center, other])).pairs) == 1

    def test_a_crowd_is_reported_not_hidden(self) -> None:
        hashes = crowd(0, 600)
        found = near_pairs(hashes, max_bucket=50)
        missed = all_pairs(hashes, 4) - set(map(tuple, found.pairs.tolist()))
        assert len(found.skipped) > 0
        assert {i for pair in missed for i in pair} <= set(found.skipped.tolist())

    @pytest.mark.parametrize("count", [0, 1])
    def test_nothing_to_compare(self, count: int) -> None:
        assert near_pairs(np.arange(count, dtype=np.uint64)).pairs.shape == (0, 2)

    def test_more_bits_than_the_bands_allow(self) -> None:
        with pytest.raises(ValueError, match="0 to 4"):
            near_pairs(np.arange(2, dtype=np.uint64), max_bits=5)
