"""Tests of core_mri.metrics.segmentation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest

from core_mri.metrics import dice, hausdorff95, surface_dice

SPACING = (3.0, 0.7, 1.1)
RECORDED = [
    (0, (0.5986394, 3.3000000, 0.4222222)),
    (1, (0.6428571, 3.1953092, 0.5017065)),
    (2, (0.6650124, 3.0000000, 0.4835165)),
]
"""Seed of `random_masks` and MONAI's Dice, Hausdorff 95 and surface Dice at 1 mm."""


def random_masks(seed: int, shape: tuple[int, ...] = (6, 13, 11)) -> list[npt.NDArray[np.bool_]]:
    """Two overlapping blobs that touch the border for some seeds."""
    rng = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices(shape), 0, -1).astype(np.float64)
    masks = []
    for _ in range(2):
        center = np.array(shape) / 2 + rng.normal(0, 0.6, len(shape))
        radius = np.array(shape) * rng.uniform(0.25, 0.55, len(shape))
        masks.append((((grid - center) / radius) ** 2).sum(axis=-1) < 1)
    return masks


def voxel(*index: int, shape: tuple[int, ...] = (5, 9, 9)) -> npt.NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


class TestProperties:
    @pytest.mark.parametrize("seed", range(4))
    def test_symmetric_bounded_and_perfect_with_itself(self, seed: int) -> None:
        a, b = random_masks(seed)
        assert dice(a, b) == dice(b, a)
        assert surface_dice(a, b, spacing_mm=SPACING) == surface_dice(b, a, spacing_mm=SPACING)
        assert hausdorff95(a, b, spacing_mm=SPACING) == hausdorff95(b, a, spacing_mm=SPACING)
        assert 0 < dice(a, b) < 1
        assert 0 <= surface_dice(a, b, spacing_mm=SPACING, tolerance_mm=0.0) < 1
        assert dice(a, a) == 1.0
        assert surface_dice(a, a, spacing_mm=SPACING, tolerance_mm=0.0) == 1.0
        assert hausdorff95(a, a, spacing_mm=SPACING) == 0.0

    @pytest.mark.parametrize("seed", range(4))
    def test_axes_may_be_permuted_with_their_spacing(self, seed: int) -> None:
        a, b = random_masks(seed)
        moved = [np.ascontiguousarray(np.flip(m.transpose(2, 0, 1), 1)) for m in (a, b)]
        spacing = (SPACING[2], SPACING[0], SPACING[1])
        assert surface_dice(*moved, spacing_mm=spacing) == surface_dice(a, b, spacing_mm=SPACING)
        assert hausdorff95(*moved, spacing_mm=spacing) == pytest.approx(
            hausdorff95(a, b, spacing_mm=SPACING)
        )

    def test_empty_margin_changes_nothing(self) -> None:
        a, b = random_masks(1)
        wide = [np.pad(m, 4) for m in (a, b)]
        assert surface_dice(*wide, spacing_mm=SPACING) == surface_dice(a, b, spacing_mm=SPACING)
        assert hausdorff95(*wide, spacing_mm=SPACING) == hausdorff95(a, b, spacing_mm=SPACING)

    def test_numbers_zero_and_one_are_masks(self) -> None:
        a, b = random_masks(2)
        assert dice(a.astype(np.uint8), b.astype(np.float32)) == dice(a, b)


class TestHandComputed:
    def test_dice_of_two_squares(self) -> None:
        a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
        a[1:5, 1:5], b[3:7, 3:7] = True, True  # 16 and 16 pixels, 4 in common
        assert dice(a, b) == 2 * 4 / 32

    def test_distance_is_in_millimeters_of_the_axis(self) -> None:
        a = voxel(2, 4, 4)
        for other, distance in [
            (voxel(3, 4, 4), 3.0),
            (voxel(2, 6, 4), 2 * 0.7),
            (voxel(3, 6, 5), math.sqrt(3.0**2 + 1.4**2 + 1.1**2)),
        ]:
            assert hausdorff95(a, other, spacing_mm=SPACING) == pytest.approx(distance)
            just = {"spacing_mm": SPACING, "tolerance_mm": distance}
            below = {"spacing_mm": SPACING, "tolerance_mm": distance - 1e-3}
            assert surface_dice(a, other, **just) == 1.0  # type: ignore[arg-type]
            assert surface_dice(a, other, **below) == 0.0  # type: ignore[arg-type]

    def test_tolerance_survives_binary_fractions(self) -> None:
        # 3 * 0.1 > 0.3 in float64
        a, b = voxel(0, 0, shape=(1, 9)), voxel(0, 3, shape=(1, 9))
        assert surface_dice(a, b, spacing_mm=(1.0, 0.1), tolerance_mm=0.3) == 1.0

    def test_surface_counts_voxels_not_the_inside(self) -> None:
        # 5x5 has 16 surface pixels, the 3x3 inside it 8. Each pixel of the small surface is 1 mm
        # from the large one; of the large one 12 are 1 mm away and its 4 corners sqrt(2) mm.
        a, b = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
        a[2:7, 2:7], b[3:6, 3:6] = True, True
        assert surface_dice(a, b, spacing_mm=(1, 1), tolerance_mm=1.0) == (12 + 8) / (16 + 8)
        assert surface_dice(a, b, spacing_mm=(1, 1), tolerance_mm=0.5) == 0.0
        assert hausdorff95(a, b, spacing_mm=(1, 1)) == pytest.approx(math.sqrt(2))


class TestEmptyMasks:
    def test_the_documented_conventions(self) -> None:
        empty, some = np.zeros((4, 5, 6), bool), voxel(1, 2, 3, shape=(4, 5, 6))
        assert dice(empty, empty) == 1.0
        assert surface_dice(empty, empty, spacing_mm=SPACING) == 1.0
        assert math.isnan(hausdorff95(empty, empty, spacing_mm=SPACING))
        for pair in [(empty, some), (some, empty)]:
            assert dice(*pair) == 0.0
            assert surface_dice(*pair, spacing_mm=SPACING) == 0.0
            assert hausdorff95(*pair, spacing_mm=SPACING) == math.inf


class TestAgainstMonai:
    @pytest.mark.parametrize(("seed", "expected"), RECORDED)
    def test_recorded_scores(self, seed: int, expected: tuple[float, float, float]) -> None:
        # Made with MONAI 1.6.1 by the calls of the next test, shape (6, 13, 11).
        a, b = random_masks(seed)
        got = (
            dice(a, b),
            hausdorff95(a, b, spacing_mm=SPACING),
            surface_dice(a, b, spacing_mm=SPACING, tolerance_mm=1.0),
        )
        assert got == pytest.approx(expected, rel=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(6, 13, 11), (17, 12)])
    @pytest.mark.parametrize("seed", range(5))
    def test_equal_scores(self, seed: int, shape: tuple[int, ...]) -> None:
        a, b = random_masks(seed, shape)
        spacing = SPACING[-len(shape) :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's own deprecations, not ours
            import torch
            from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric

            one_hot = [torch.from_numpy(m)[None, None].float() for m in (b, a)]
            expected = [
                DiceMetric()(*one_hot).item(),
                HausdorffDistanceMetric(include_background=True, percentile=95)(
                    *one_hot, spacing=spacing
                ).item(),
                *(
                    SurfaceDiceMetric([t], include_background=True, use_subvoxels=False)(
                        *one_hot, spacing=spacing
                    ).item()
                    for t in (0.5, 1.0, 2.2)
                ),
            ]
        got = [
            dice(a, b),
            hausdorff95(a, b, spacing_mm=spacing),
            *(surface_dice(a, b, spacing_mm=spacing, tolerance_mm=t) for t in (0.5, 1.0, 2.2)),
        ]
        assert got == pytest.approx(expected, rel=1e-6)


class TestFailures:
    def test_shapes_values_spacing_and_tolerance_are_checked(self) -> None:
        a = np.ones((3, 4), bool)
        with pytest.raises(ValueError, match="differ in shape"):
            dice(a, a.T)
        with pytest.raises(ValueError, match="0 and 1 only"):
            dice(a, a * 2)
        for spacing in [(1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, 1.0, 1.0)]:
            with pytest.raises(ValueError, match="spacing_mm"):
                surface_dice(a, a, spacing_mm=spacing)
        for tolerance in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="tolerance_mm"):
                surface_dice(a, a, spacing_mm=(1, 1), tolerance_mm=tolerance)
