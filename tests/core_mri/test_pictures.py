"""Tests of core_mri.pictures and core_mri.plots."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from core_mri.figure_style import LINE_COLORS, OUTLINE_COLORS
from core_mri.metrics import Interval
from core_mri.pictures import contact_sheet, feature_pca, overlay
from core_mri.plots import curves, interval_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE = np.add.outer(np.arange(24.0), np.arange(32.0))


def square(top: int, left: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros(IMAGE.shape, dtype=np.uint8)
    mask[top : top + 8, left : left + 8] = 1
    return mask


def pixels(figure: Figure) -> npt.NDArray[np.int16]:
    """The drawn figure ``[H, W, 3]``, 0 to 255."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(np.int16)  # type: ignore[attr-defined]


def num_pixels_of(picture: npt.NDArray[np.int16], color: str) -> int:
    """How many pixels are within 24 of `color`, "#rrggbb", in each channel."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(axis=-1) < 24).sum())


def texts(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [
        *(text.get_text() for text in figure.texts),
        *(text.get_text() for axes in figure.axes for text in axes.texts),
        *(text.get_text() for legend in legends if legend for text in legend.get_texts()),
    ]


def make_all() -> list[Figure]:
    x = np.arange(10.0)
    rows = [("task", "ours", Interval(0.8, 0.7, 0.9, 9))]
    return [
        overlay(IMAGE, square(2, 2), square(4, 4), "case"),
        contact_sheet([IMAGE, IMAGE.T], ["a", "b"]),
        curves({"loss": (x, x), "other": (x, x + 1)}, "step", "loss"),
        interval_plot(rows, "Dice"),
        feature_pca(np.random.default_rng(0).normal(size=(6, 8, 5)), IMAGE),
    ]


class TestAllFigures:
    def test_drawing_twice_gives_the_same_picture(self) -> None:
        for one, other in zip(make_all(), make_all(), strict=True):
            assert (pixels(one) == pixels(other)).all()

    def test_background_is_white_and_something_is_drawn(self) -> None:
        for figure in make_all():
            picture = pixels(figure)
            assert (picture[0, 0] == 255).all()
            assert (picture < 128).any()

    def test_matplotlib_is_loaded_late_and_pyplot_never(self) -> None:
        code = (
            "import sys, core_mri.pictures, core_mri.plots as p\n"
            "early = 'matplotlib' in sys.modules;"
            "p.curves({'a': ([0, 1], [1, 2])}, 'x', 'y');"
            "print(early, 'matplotlib.pyplot' in sys.modules)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout.split() == ["False", "False"], run.stderr


class TestOverlay:
    def test_each_outline_has_its_color(self) -> None:
        reference, estimate = OUTLINE_COLORS[:2]
        neither = pixels(overlay(IMAGE))
        assert num_pixels_of(neither, reference) == num_pixels_of(neither, estimate) == 0
        only_reference = pixels(overlay(IMAGE, square(2, 2)))
        assert num_pixels_of(only_reference, reference) > 100
        assert num_pixels_of(only_reference, estimate) == 0
        both = pixels(overlay(IMAGE, square(2, 2), square(14, 20)))
        assert num_pixels_of(both, reference) > num_pixels_of(both, estimate) > 100

    @pytest.mark.parametrize(
        "names",
        [
            ["left ventricle"],
            ["anterior hippocampus", "posterior hippocampus"],
            [f"a structure of the upper abdomen {i}" for i in range(5)],
        ],
    )
    def test_legends_stay_within_the_picture(self, names: list[str]) -> None:
        figure = overlay(IMAGE, square(2, 2), square(4, 4), names=dict(enumerate(names, 1)))
        figure.canvas.draw()
        (legend,) = figure.legends
        place, whole = legend.get_window_extent(), figure.bbox
        assert 0 <= place.x0 < place.x1 <= whole.x1
        assert 0 <= place.y0 < place.y1 <= figure.axes[0].get_window_extent().y0
        assert [text.get_text() for text in legend.get_texts()] == ["reference", "estimate", *names]

    def test_lines_differ_without_color(self) -> None:
        figure = overlay(IMAGE, square(2, 2), square(4, 4))
        dashes = [c.get_linestyles()[0][1] for c in figure.axes[0].collections]  # type: ignore[attr-defined]
        assert not dashes[0]
        assert len(dashes[1]) == 2

    def test_outline_lies_on_the_border_of_the_mask(self) -> None:
        figure = overlay(IMAGE, square(2, 5))
        (drawn,) = figure.axes[0].collections
        corners = drawn.get_paths()[0].vertices
        assert np.asarray(corners).min(axis=0) == pytest.approx([4.5, 1.5])
        assert np.asarray(corners).max(axis=0) == pytest.approx([12.5, 9.5])

    def test_a_mask_that_fills_the_image_keeps_its_outline_and_the_view(self) -> None:
        figure = overlay(IMAGE, np.ones_like(IMAGE))
        assert num_pixels_of(pixels(figure), OUTLINE_COLORS[0]) > 100
        assert figure.axes[0].get_xlim() == (-0.5, 31.5)
        assert figure.axes[0].get_ylim() == (23.5, -0.5)

    def test_structures_by_name(self) -> None:
        labels = square(2, 2) + 3 * square(14, 20)
        figure = overlay(IMAGE, labels, names={1: "muscle", 3: "fat"})
        assert {"muscle", "fat", "reference"} <= set(texts(figure))
        assert num_pixels_of(pixels(figure), OUTLINE_COLORS[1]) > 100

    @pytest.mark.parametrize(
        ("codes", "left", "right"), [("PL", "R", "L"), ("IL", "R", "L"), ("IP", "A", "P")]
    )
    def test_sides_are_marked(self, codes: str, left: str, right: str) -> None:
        marks = overlay(IMAGE, orientation=codes).axes[0].texts
        by_position = sorted((text.get_position()[0], text.get_text()) for text in marks)
        assert [letter for _, letter in by_position] == [left, right]
        assert not overlay(IMAGE).axes[0].texts

    def test_pixels_have_their_physical_shape(self) -> None:
        figure = overlay(IMAGE, spacing_mm=(2.0, 1.0))
        pixels(figure)  # boxes are final once drawn
        box = figure.axes[0].get_window_extent()
        assert box.height / box.width == pytest.approx(24 * 2 / 32, rel=0.01)

    def test_window_sets_black_and_white(self) -> None:
        image = overlay(IMAGE, window=(10.0, 20.0)).axes[0].images[0]
        assert image.get_clim() == (10.0, 20.0)


class TestContactSheet:
    def test_one_square_cell_per_image(self) -> None:
        figure = contact_sheet([IMAGE] * 5, list("abcde"), columns=3, orientations=["PL"] * 5)
        assert len(figure.axes) == 5
        assert set("abcdeRL") == set(texts(figure))
        pixels(figure)
        for axes in figure.axes:
            box = axes.get_window_extent()
            assert box.height / box.width == pytest.approx(1, rel=0.05)

    def test_counts_must_agree(self) -> None:
        for images, titles in [([], []), ([IMAGE], ["a", "b"])]:
            with pytest.raises(ValueError, match="as many titles"):
                contact_sheet(images, titles)


class TestCurves:
    def test_bins_are_means_with_a_band(self) -> None:
        x, y = np.arange(6), [1.0, 3.0, 5.0, 7.0, math.nan, math.nan]
        axes = curves({"a": (x, y)}, "step", "loss", points_per_bin=2).axes[0]
        assert axes.lines[0].get_xdata() == pytest.approx([0.5, 2.5, 4.5])
        assert axes.lines[0].get_ydata() == pytest.approx([2, 6, math.nan], nan_ok=True)
        band = np.asarray(axes.collections[0].get_paths()[0].vertices)
        assert band[:, 1].min() == pytest.approx(1.2)  # the 10th percentile of 1 and 3
        assert band[:, 1].max() == pytest.approx(6.8)

    def test_not_finite_values_leave_a_gap(self) -> None:
        axes = curves({"a": ([0, 1, 2], [1, math.inf, 3])}, "x", "y", log_y=True).axes[0]
        assert axes.lines[0].get_ydata() == pytest.approx([1, math.nan, 3], nan_ok=True)
        assert axes.get_yscale() == "log"

    def test_many_series_all_look_different(self) -> None:
        series = {str(i): ([0, 1], [i, i]) for i in range(3 * len(LINE_COLORS))}
        lines = curves(series, "x", "y").axes[0].lines
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(series)

    def test_one_series_needs_no_legend(self) -> None:
        assert curves({"a": ([0], [1])}, "x", "y").axes[0].get_legend() is None


class TestIntervalPlot:
    def test_points_and_ends_are_the_numbers(self) -> None:
        rows = [
            ("knee", "ours", Interval(0.8, 0.7, 0.9, 9)),
            ("knee", "twin", Interval(0.6, 0.5, 0.65, 9)),
            ("brain", "ours", Interval(0.5, math.nan, math.nan, 1)),
        ]
        axes = interval_plot(rows, "Dice").axes[0]
        drawn = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata())]  # type: ignore[arg-type]
        assert [0.7, 0.9] in drawn
        assert [0.8] in drawn
        assert [0.5, 0.65] in drawn
        assert [label.get_text() for label in axes.get_yticklabels()] == ["knee", "brain"]
        hollow = [line for line in axes.lines if list(line.get_xdata()) == [0.5]]  # type: ignore[arg-type]
        assert hollow[0].get_markerfacecolor() == "white"

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one row"):
            interval_plot([], "Dice")


class TestFeaturePca:
    def test_finds_the_planted_component_whatever_its_sign(self) -> None:
        rng = np.random.default_rng(1)
        pattern = np.zeros((10, 12))
        pattern[3:7, 4:9] = 1
        direction = rng.normal(size=16)
        features = pattern[..., None] * direction * 5 + rng.normal(0, 0.01, (10, 12, 16))
        first = feature_pca(features).axes[1].images[0].get_array()
        assert first is not None
        correlation = np.corrcoef(np.ravel(first), pattern.ravel())[0, 1]
        assert abs(correlation) > 0.99
        assert "1: 100% of variance" in texts(feature_pca(features))

    def test_constant_and_narrow_features_can_be_drawn(self) -> None:
        for features in (np.ones((4, 4, 8)), np.random.default_rng(2).normal(size=(4, 4, 1))):
            assert pixels(feature_pca(features)).size
