"""The quiet style of all figures: colors, sizes of text, empty figures and axes.

Colors are those of Okabe and Ito (Color universal design, 2008), which people with color-blindness
can tell apart; what a color says is also said by a line style, a marker or a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#8F6B00")
"""For white ground, in order of use; the last is Okabe and Ito's orange, darkened."""

OUTLINE_COLORS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00")
"""For gray scans, in order of use."""

INK, FAINT = "#1f2933", "#8a949e"
TEXT_PT, SMALL_PT = 10, 9


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, apart from matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes and a title."""
    figure = new_figure(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=SMALL_PT, color=FAINT)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=TEXT_PT, color=INK)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=TEXT_PT + 1, color=INK)
    return figure, axes


def cycle(values: Sequence[str], index: int) -> str:
    """A value in order of use, from the start again behind the last."""
    return values[index % len(values)]
