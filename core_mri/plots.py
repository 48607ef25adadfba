"""Plots of numbers in the style of all figures: curves, intervals, bars.

Every function returns a `matplotlib.figure.Figure` and leaves matplotlib's global state alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.figure_style import FAINT, INK, LINE_COLORS, SMALL_PT, cycle, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from core_mri.metrics.classification import ReliabilityBin
    from core_mri.metrics.intervals import Interval

_LINE_CHARACTERS, _SAMPLE_CHARACTERS = 96, 6
"""What fits into a line above a plot; what the sample of a line takes of it."""
_MARKERS, _DASHES = "osD^vP", ("-", "--", "-.", ":")


def curves(
    series: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    log_y: bool = False,
    points_per_bin: int = 1,
) -> Figure:
    """Lines over a common axis, such as losses over steps.

    Args:
        series: Name to ``(x [N], y [N])``; not-finite y leave a gap.
        xlabel: Quantity and unit.
        ylabel: Quantity and unit.
        title: One short line.
        log_y: Logarithmic y axis.
        points_per_bin: Above 1, so many consecutive points become one: the line is their mean, the
            band their 10th to 90th percentile.
    """
    figure, axes = new_axes(7.2, 3.4, title)
    for index, (name, (x, y)) in enumerate(series.items()):
        style, color = cycle(_DASHES, index // len(LINE_COLORS)), cycle(LINE_COLORS, index)
        x_mean, y_mean, low, high = _binned(x, y, points_per_bin)
        if points_per_bin > 1:
            axes.fill_between(x_mean, low, high, color=color, alpha=0.15, linewidth=0)
        marker = "o" if len(x_mean) == 1 else ""
        axes.plot(x_mean, y_mean, style, color=color, label=name, linewidth=1.6, marker=marker)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        _legend_above(axes, list(series))
    return figure


def interval_plot(
    rows: Sequence[tuple[str, str, Interval]], xlabel: str, *, title: str = ""
) -> Figure:
    """A point and its confidence interval for each weights within each task.

    A hollow point has no interval (one patient).

    Args:
        rows: ``(task, weights, interval)``, in order from top to bottom.
        xlabel: Metric and unit.
        title: One short line.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("an interval plot needs at least one row")
    tasks = list(dict.fromkeys(task for task, _, _ in rows))
    weights = list(dict.fromkeys(name for _, name, _ in rows))
    figure, axes = new_axes(7.2, 0.9 + len(tasks) * (0.25 + 0.17 * len(weights)), title)
    step = 0.7 / len(weights)
    looks = {name: (cycle(LINE_COLORS, i), cycle(_MARKERS, i)) for i, name in enumerate(weights)}
    for name, (color, marker) in looks.items():
        axes.plot([], [], marker, color=color, label=name, markersize=5)
    for place, task in enumerate(tasks):
        own = [(name, interval) for row_task, name, interval in rows if row_task == task]
        for index, (name, interval) in enumerate(own):
            color, marker = looks[name]
            y = place + (index - (len(own) - 1) / 2) * step
            axes.plot([interval.low, interval.high], [y, y], color=color, linewidth=1.6)
            face = "white" if math.isnan(interval.low) else color
            axes.plot([interval.mean], [y], marker, color=color, markerfacecolor=face, markersize=5)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_xlabel(xlabel)
    _legend_above(axes, weights)
    return figure


def efficiency_curves(
    series: Mapping[str, Sequence[tuple[int, Interval]]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
) -> Figure:
    """Scores against the number of labels on a logarithmic axis, each with its interval.

    Intervals at the same number stand side by side, each in the color of its line; a point without
    one (one patient) is hollow.

    Args:
        series: Name to ``(number of labels, interval)``; numbers are 1 or more.
        xlabel: What is counted.
        ylabel: Metric and unit.
        title: One short line.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axes = new_axes(7.2, 3.6, title)
    numbers = sorted({number for points in series.values() for number, _ in points})
    for index, (name, points) in enumerate(series.items()):
        color, marker = cycle(LINE_COLORS, index), cycle(_MARKERS, index)
        aside = 1.03 ** (index - (len(series) - 1) / 2)
        own = sorted(points, key=lambda point: point[0])
        x = [number * aside for number, _ in own]
        style = cycle(_DASHES, index // len(LINE_COLORS))
        means = [found.mean for _, found in own]
        axes.plot(x, means, style, color=color, linewidth=1.6, label=name)
        axes.vlines(
            x, [f.low for _, f in own], [f.high for _, f in own], color=color, linewidth=1.6
        )
        for place, (_, found) in zip(x, own, strict=True):
            face = "white" if math.isnan(found.low) else color
            axes.plot(
                [place], [found.mean], marker, color=color, markerfacecolor=face, markersize=5
            )
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(numbers[0] / 1.3, numbers[-1] * 1.3)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        _legend_above(axes, list(series))
    return figure


def reliability_plot(series: Mapping[str, Sequence[ReliabilityBin]], *, title: str = "") -> Figure:
    """Share of right answers against stated confidence; on the diagonal they agree.

    The area of a point grows with its number of cases.

    Args:
        series: Name to bins, of `core_mri.metrics.reliability`.
        title: One short line.
    """
    figure, axes = new_axes(4.4, 4.4, title)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    axes.annotate(
        "as stated", (0.06, 0.06), xytext=(8, -2), textcoords="offset points",
        size=SMALL_PT, color=FAINT, rotation=45, rotation_mode="anchor",
    )  # fmt: skip
    for index, (name, bins) in enumerate(series.items()):
        color, total = cycle(LINE_COLORS, index), sum(own.count for own in bins)
        x, y = [own.confidence for own in bins], [own.accuracy for own in bins]
        axes.plot(x, y, cycle(_DASHES, index), color=color, linewidth=1.4, label=name)
        sizes = [12 + 160 * own.count / total for own in bins]
        axes.scatter(
            x, y, sizes, color=color, marker=cycle(_MARKERS, index), linewidth=0, alpha=0.8
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_aspect("equal")
    axes.set_xlabel("stated probability of the likeliest class")
    axes.set_ylabel("share of right answers")
    _legend_above(axes, list(series), most=2)
    return figure


def bars(values: Mapping[str, float], xlabel: str, *, title: str = "") -> Figure:
    """Horizontal bars from top to bottom, each with its number.

    Args:
        values: Name to count.
        xlabel: Quantity and unit.
        title: One short line.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(7.2, 0.9 + 0.24 * len(values), title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = axes.barh(range(len(values)), list(values.values()), 0.7, color=LINE_COLORS[0])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, size=SMALL_PT, color=INK)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_xlabel(xlabel)
    return figure


def _legend_above(axes: Axes, names: Sequence[str], most: int = 4) -> None:
    longest = max(map(len, names)) + _SAMPLE_CHARACTERS
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, min(len(names), most, _LINE_CHARACTERS // longest)),
        frameon=False,
        fontsize=SMALL_PT,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.8,
    )


def _binned(x: npt.ArrayLike, y: npt.ArrayLike, size: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Mean x, mean y, 10th and 90th percentile of y of each `size` consecutive points."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ys = np.where(np.isfinite(ys), ys, np.nan)
    if size == 1:
        return xs, ys, ys, ys
    starts = range(0, len(xs), size)
    bins = [ys[start : start + size] for start in starts]
    kept = [values[~np.isnan(values)] for values in bins]
    rows = [
        (xs[start : start + size].mean(), values.mean(), *np.quantile(values, (0.1, 0.9)))
        if values.size
        else (xs[start : start + size].mean(), np.nan, np.nan, np.nan)
        for start, values in zip(starts, kept, strict=True)
    ]
    return tuple(np.array(rows, dtype=np.float64).reshape(-1, 4).T)
