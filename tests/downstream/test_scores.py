"""Scores of whole volumes: what the metrics say, and what an absent structure means."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from core_mri.metrics import dice, hausdorff95, surface_dice
from downstream.segmentation.scores import distances_of, measure

SPACING = (5.0, 0.5, 0.5)


def scores(reference, estimate, spacing=SPACING, unit="mm", **tolerances):
    found = measure(
        reference, estimate, ["liver"], spacing=spacing, unit=unit, tolerances=tolerances
    )
    return {m.metric: (m.value, m.unit) for m in found}


@pytest.fixture
def ball():
    grid = np.indices((7, 24, 20)) - np.array([3, 12, 9])[:, None, None, None]
    return (np.sum((grid * np.array(SPACING)[:, None, None, None]) ** 2, 0) < 36).astype(np.uint8)


class TestMeasure:
    def test_agrees_with_the_metrics_on_the_whole_volume(self, ball):
        moved = np.roll(ball, 2, axis=2)
        found = scores(ball, moved, liver=0.75)
        assert found["dice"] == (dice(ball, moved), "1")
        expected = surface_dice(ball, moved, spacing_mm=SPACING, tolerance_mm=0.75)
        assert found["nsd"] == (expected, "1")
        assert found["hd95"] == (hausdorff95(ball, moved, spacing_mm=SPACING), "mm")
        assert 0 < found["nsd"][0] < 1

    def test_agrees_with_monai(self, ball):
        """`compute_hausdorff_distance` and `compute_surface_dice` of MONAI 1.6, as a reference."""
        torch = pytest.importorskip("torch")
        monai = pytest.importorskip("monai.metrics")
        moved = np.roll(np.roll(ball, 3, axis=2), 1, axis=1)
        masks = [torch.from_numpy(m)[None, None].float() for m in (ball, moved)]
        found = scores(ball, moved)
        distance = monai.compute_hausdorff_distance(
            *masks, include_background=True, percentile=95, spacing=SPACING
        )
        agreement = monai.compute_surface_dice(
            *masks, class_thresholds=[1.0], include_background=True, spacing=SPACING
        )
        assert found["hd95"][0] == pytest.approx(float(distance), rel=1e-6)
        assert found["nsd"][0] == pytest.approx(float(agreement), rel=1e-6)

    def test_absent_from_both_is_perfect(self):
        nothing = np.zeros((3, 4, 4), np.uint8)
        assert scores(nothing, nothing) == {
            "dice": (1.0, "1"), "nsd": (1.0, "1"), "hd95": (0.0, "mm"),
        }  # fmt: skip

    @pytest.mark.parametrize("swap", [False, True])
    def test_absent_from_one_is_the_worst_there_is(self, ball, swap):
        masks = [ball, np.zeros_like(ball)]
        found = scores(*(masks[::-1] if swap else masks))
        diagonal = math.hypot(7 * 5.0, 24 * 0.5, 20 * 0.5)
        assert found["dice"][0] == found["nsd"][0] == 0
        assert found["hd95"][0] == pytest.approx(diagonal)

    def test_the_diagonal_is_that_of_brats(self):
        """373.13 mm on its 240 x 240 x 155 grid of 1 mm."""
        volume = np.zeros((155, 240, 240), np.uint8)
        volume[70:72, 100:102, 100:102] = 1
        found = scores(volume, np.zeros_like(volume), spacing=(1, 1, 1))
        assert found["hd95"][0] == pytest.approx(373.13, abs=5e-3)

    def test_an_empty_slice_with_a_false_mask_costs(self, ball):
        wrong = ball.copy()
        wrong[0, 4:8, 4:8] = 1
        perfect, found = scores(ball, ball), scores(ball, wrong)
        assert perfect == {"dice": (1.0, "1"), "nsd": (1.0, "1"), "hd95": (0.0, "mm")}
        assert found["dice"][0] < 1
        assert found["nsd"][0] < 1

    def test_a_single_slice_is_measured_in_the_plane(self, ball):
        one, moved = ball[3:4], np.roll(ball[3:4], 2, axis=2)
        found = scores(one, moved)
        assert found["hd95"][0] == hausdorff95(one[0], moved[0], spacing_mm=SPACING[1:])

    def test_structures_are_scored_one_by_one(self, ball):
        both = ball.copy()
        both[ball.nonzero()[0][0]] *= 2
        found = measure(both, both, ["liver", "spleen"], spacing=SPACING, unit="mm", tolerances={})
        assert [m.structure for m in found] == ["liver"] * 3 + ["spleen"] * 3


class TestDistancesOf:
    def test_millimeters_of_a_scan(self):
        row = SimpleNamespace(facts="{}", spacing_mm=SPACING)
        assert distances_of(row) == (SPACING, "mm")

    def test_pixels_where_nobody_knows_the_spacing(self):
        row = SimpleNamespace(facts='{"UnknownSpacing": true}', spacing_mm=SPACING)
        assert distances_of(row) == ((1.0, 1.0, 1.0), "px")
