"""Figures of scans in one quiet style, for reports and notebooks.

Every function returns a `matplotlib.figure.Figure` and leaves matplotlib's global state alone.
Shape letters: ``H W`` rows and columns of pixels, ``h w`` of patches, ``D`` features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.figure_style import INK, OUTLINE_COLORS, SMALL_PT, TEXT_PT, cycle, new_figure

_Dashes = tuple[float, tuple[float, ...]]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONVENTION = (
    "Axial and coronal pictures are in radiological convention: the patient's right is on the left."
)
"""What the letters on pictures of scans mean, for captions; holds for `SLICE_ORIENTATION`."""

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_ROLE_COLORS = {"reference": OUTLINE_COLORS[0], "estimate": OUTLINE_COLORS[1]}
_ROLE_DASHES: dict[str, _Dashes] = {"reference": (0.0, ()), "estimate": (0.0, (3.0, 2.0))}
_SAMPLE, _PAD, _BETWEEN = 1.8, 0.8, 1.2
"""Of a legend, in letter heights: a sample of the line, its distance to the text, columns."""


def overlay(
    image: npt.NDArray[np.generic],
    reference: npt.NDArray[np.generic] | None = None,
    estimate: npt.NDArray[np.generic] | None = None,
    title: str = "",
    *,
    names: Mapping[int, str] | None = None,
    orientation: str = "",
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    window: tuple[float, float] | None = None,
) -> Figure:
    """One slice with outlines: solid for the reference, dashed for the estimate.

    Args:
        image: Intensities ``[H, W]``.
        reference: Label map or mask ``[H, W]``, 0 is background.
        estimate: The same for the result under test.
        title: One short line.
        names: Label value to structure name: then each structure has its color. Without it the
            reference is orange, the estimate blue, and all labels count as one structure.
        orientation: Two axis codes ``[row, column]``, such as ``"PL"``, the last two of a value of
            `core_mri.volume.SLICE_ORIENTATION`; empty means no letters at the sides.
        spacing_mm: Pixel height and width, millimeters.
        window: Intensities shown black and white; else the 0.5 and 99.5 percentiles.
    """
    from matplotlib.lines import Line2D

    roles = (("reference", reference), ("estimate", estimate))
    masks = {role: np.asarray(mask) for role, mask in roles if mask is not None}
    handles = [
        Line2D([], [], color=INK if names else _ROLE_COLORS[r], linestyle=_ROLE_DASHES[r], label=r)
        for r in masks
    ]
    handles += [
        Line2D([], [], color=cycle(OUTLINE_COLORS, i), marker="s", linestyle="", label=name)
        for i, name in enumerate((names or {}).values())
    ]
    width, size = 3.0, SMALL_PT - 1  # inches, points
    legend_columns = _legend_columns([str(h.get_label()) for h in handles], 72 * width, size)
    height = width * image.shape[0] * spacing_mm[0] / (image.shape[1] * spacing_mm[1])
    above = 0.28 if title else 0.02
    below = 0.1 + 0.18 * math.ceil(len(handles) / legend_columns)
    total = above + height + below
    figure = new_figure(width, total)
    axes = figure.add_axes((0.0, below / total, 1.0, height / total))
    _show_scan(axes, image, orientation=orientation, spacing_mm=spacing_mm, window=window)
    figure.text(0.0, 1 - 0.12 / total, title, va="center", size=SMALL_PT, color=INK)
    for role, mask in masks.items():
        if names is None:
            _outline(axes, mask != 0, _ROLE_COLORS[role], _ROLE_DASHES[role])
        for index, label in enumerate(names or {}):
            _outline(axes, mask == label, cycle(OUTLINE_COLORS, index), _ROLE_DASHES[role])
    if handles:
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.0, 0.0),
            ncols=legend_columns,
            frameon=False,
            fontsize=size,
            labelcolor=INK,
            handlelength=_SAMPLE,
            handletextpad=_PAD,
            columnspacing=_BETWEEN,
            labelspacing=0.3,
            borderaxespad=0,
            borderpad=0.1,
        )
    return figure


def _legend_columns(labels: Sequence[str], width: float, size: float) -> int:
    """The most columns, up to 3, that fit the width in points; columns are filled one by one."""
    from matplotlib.textpath import TextPath

    texts = [TextPath((0, 0), label, size=size).get_extents().width for label in labels]
    entries = [(_SAMPLE + _PAD) * size + text for text in texts]
    for columns in range(min(3, len(entries)), 1, -1):
        widest = (max(part) for part in np.array_split(entries, columns))
        if sum(widest) + (columns - 1) * _BETWEEN * size <= width:
            return columns
    return 1


def contact_sheet(
    images: Sequence[npt.NDArray[np.generic]],
    titles: Sequence[str] = (),
    columns: int = 6,
    *,
    orientations: Sequence[str] = (),
    windows: Sequence[tuple[float, float]] = (),
    spacings_mm: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Slices side by side, each in its own intensity window, on equal square cells.

    Args:
        images: Intensities ``[H, W]``, sizes may differ.
        titles: One short line each, or none at all.
        columns: Cells in a row.
        orientations: As `overlay`'s, one each, or none at all.
        windows: As `overlay`'s, one each, or none at all.
        spacings_mm: As `overlay`'s, one each, or none at all.

    Raises:
        ValueError: No images, or another number of what goes with them.
    """
    given = [len(items) for items in (titles, orientations, windows, spacings_mm)]
    if not images or not {0, len(images)}.issuperset(given):
        raise ValueError(
            f"expected images, and as many titles, orientations, windows and spacings or none, "
            f"got {len(images)}, and {given}"
        )
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell, line = 1.5, 0.2 if titles else 0.04  # inches
    width, height = columns * cell, rows * (cell + line)
    figure = new_figure(width, height)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        bottom = height - (row + 1) * (cell + line)
        axes = figure.add_axes(
            ((column * cell + 0.02) / width, bottom / height, (cell - 0.04) / width, cell / height)
        )
        axes.set_facecolor("black")
        _show_scan(
            axes,
            image,
            orientation=orientations[index] if orientations else "",
            spacing_mm=spacings_mm[index] if spacings_mm else (1.0, 1.0),
            window=windows[index] if windows else None,
            letterbox=True,
        )
        if titles:
            figure.text(
                (column + 0.5) * cell / width,
                (bottom + cell + line / 2) / height,
                titles[index],
                ha="center",
                va="center",
                size=SMALL_PT - 1,
                color=INK,
            )
    return figure


def comparison(
    image: npt.NDArray[np.generic],
    reference: npt.NDArray[np.generic] | None = None,
    *,
    zoom: tuple[int, int, int, int],
    gain: float = 5.0,
) -> Figure:
    """A reconstruction, a window of it enlarged and, with a reference, both errors brightened.

    Args:
        image: Intensities ``[H, W]``.
        reference: ``[H, W]``; shown with the same gray values.
        zoom: Top, left, height, width of the window.
        gain: Errors ``|image - reference|`` are shown this many times as bright.
    """
    from matplotlib.patches import Rectangle

    top, left, rows, columns = zoom
    ruler = np.asarray(image if reference is None else reference, np.float32)
    window = (0.0, float(np.quantile(ruler, 0.995)) or 1.0)
    panels = [("reconstruction", np.asarray(image), 1.0)]
    if reference is not None:
        error = np.abs(np.asarray(image, np.float32) - np.asarray(reference, np.float32))
        panels += [("reference", np.asarray(reference), 1.0), (f"{gain:g} x error", error, gain)]
    cell, line = 2.6, 0.22  # inches
    width, height = cell * len(panels), 2 * cell + line
    figure = new_figure(width, height)
    for number, (name, pixels, factor) in enumerate(panels):
        shown = (window[0], window[1] / factor)
        part = pixels[top : top + rows, left : left + columns]
        for row, picture in enumerate((pixels, part)):
            axes = figure.add_axes(
                (
                    (number * cell + 0.02) / width,
                    ((1 - row) * cell + 0.02) / height,
                    (cell - 0.04) / width,
                    (cell - 0.04) / height,
                )
            )
            axes.set_facecolor("black")
            _show_scan(axes, picture, window=shown, letterbox=True)
            if row == 0:
                axes.add_patch(
                    Rectangle(
                        (left - 0.5, top - 0.5), columns, rows, fill=False,
                        edgecolor=OUTLINE_COLORS[0], linewidth=1.2,
                    )
                )  # fmt: skip
        figure.text(
            (number + 0.5) * cell / width, 1 - line / 2 / height, name, ha="center", va="center",
            size=SMALL_PT, color=INK,
        )  # fmt: skip
    return figure


def feature_pca(
    features: npt.NDArray[np.floating],
    image: npt.NDArray[np.generic] | None = None,
    title: str = "",
) -> Figure:
    """What patch features distinguish: their first three principal components over the slice.

    The first picture mixes the three as red, green and blue; the others show each alone, with the
    share of the variance it explains. Signs are fixed (the largest loading is positive), so equal
    features give equal pictures. As in the feature maps of DINOv2, arXiv:2304.07193, figure 1.

    Args:
        features: Patch features ``[h, w, D]`` of one slice.
        image: The slice ``[H, W]``, shown first.
        title: One short line.
    """
    components, shares = principal_components(features)  # [h, w, 3] in [0, 1], [3]
    panels: list[tuple[str, npt.NDArray[np.generic]]] = [] if image is None else [("slice", image)]
    panels.append(("components 1-3 as RGB", components))
    panels += [(f"{i + 1}: {shares[i]:.0%} of variance", components[..., i]) for i in range(3)]
    size, top = 1.8, 0.55 if title else 0.25  # inches
    width, height = size * len(panels), size + top
    figure = new_figure(width, height)
    for index, (name, picture) in enumerate(panels):
        axes = figure.add_axes(
            ((index * size + 0.03) / width, 0, (size - 0.06) / width, size / height)
        )
        window = None if picture is image else (0.0, 1.0)
        _show_scan(axes, picture, window=window)
        figure.text(
            (index + 0.5) * size / width,
            (size + 0.12) / height,
            name,
            ha="center",
            va="center",
            size=SMALL_PT,
            color=INK,
        )
    figure.text(0.03 / width, 1 - 0.15 / height, title, va="center", size=TEXT_PT, color=INK)
    return figure


def patch_colors(
    slices: npt.NDArray[np.generic],
    patches: npt.NDArray[np.floating],
    *,
    orientation: str = "",
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    columns: int = 6,
) -> Figure:
    """Slices, and below each its patch features: three principal components as red, green, blue.

    The components are those of all patches shown together, so equal colors mean equal features.

    Args:
        slices: Intensities ``[S, H, W]``; at most `columns` of them, evenly spread, are shown.
        patches: ``[S, h, w, D]`` on the padded squares of the slices (`core_mri.slice_grid`).
        orientation: As `overlay`'s.
        spacing_mm: As `overlay`'s.
        columns: Slices at most.
    """
    import torch

    from core_mri.slice_grid import square_to_slices

    number = min(columns, len(slices))
    shown = np.unique(np.linspace(0, len(slices) - 1, number + 2).round().astype(int)[1:-1])
    some = patches[shown]
    colors, _ = principal_components(some.reshape(-1, *some.shape[2:]))
    squares = torch.from_numpy(colors.reshape(*some.shape[:3], 3)).permute(0, 3, 1, 2)
    pictures = square_to_slices(squares, *slices.shape[1:]).permute(0, 2, 3, 1).numpy()
    count = len(shown)
    return contact_sheet(
        [*slices[shown], *pictures],
        [*(f"slice {index}" for index in shown), *["components 1-3"] * count],
        count,
        orientations=[*[orientation] * count, *[""] * count] if orientation else (),
        spacings_mm=[spacing_mm] * (2 * count),
    )


def _show_scan(
    axes: Axes,
    image: npt.NDArray[np.generic],
    *,
    orientation: str = "",
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    window: tuple[float, float] | None = None,
    letterbox: bool = False,
) -> None:
    """Gray (or RGB ``[H, W, 3]``) picture without axes, letters at its left and right edge."""
    from matplotlib.patheffects import withStroke

    pixels = np.asarray(image, dtype=np.float32)
    finite = pixels[np.isfinite(pixels)]
    low, high = window or (np.quantile(finite, (0.005, 0.995)) if finite.size else (0.0, 1.0))
    axes.imshow(
        pixels,
        cmap="gray",
        vmin=float(low),
        vmax=float(high),
        aspect=spacing_mm[0] / spacing_mm[1],
        interpolation="nearest",
    )
    axes.set_autoscale_on(False)  # outlines reach half a pixel beyond the image
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if letterbox:
        rows, columns = pixels.shape[:2]
        side_mm = max(rows * spacing_mm[0], columns * spacing_mm[1]) / 2
        high, wide = side_mm / spacing_mm[0], side_mm / spacing_mm[1]
        axes.set_xlim(columns / 2 - 0.5 - wide, columns / 2 - 0.5 + wide)
        axes.set_ylim(rows / 2 - 0.5 + high, rows / 2 - 0.5 - high)
    if orientation:
        column = orientation[1]
        for x, letter, align in ((0.03, _OPPOSITE[column], "left"), (0.97, column, "right")):
            axes.text(
                x,
                0.5,
                letter,
                transform=axes.transAxes,
                ha=align,
                va="center",
                size=TEXT_PT,
                color="white",
                path_effects=[withStroke(linewidth=2, foreground="black")],
            )


def _outline(axes: Axes, mask: npt.NDArray[np.bool_], color: str, dashes: _Dashes) -> None:
    from matplotlib.patheffects import Normal, withStroke

    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float32), 1)  # closes outlines at the border of the image
    drawn = axes.contour(
        np.arange(-1, mask.shape[1] + 1),
        np.arange(-1, mask.shape[0] + 1),
        padded,
        levels=[0.5],
        colors=[color],
        linestyles=[dashes],
        linewidths=[1.5],
    )
    drawn.set_path_effects([withStroke(linewidth=2.6, foreground="#00000090"), Normal()])


def principal_components(
    features: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first three principal components of features ``[h, w, D]``, as colors.

    Signs are fixed (the largest loading is positive), so equal features give equal colors.

    Returns:
        Scores ``[h, w, 3]`` stretched to [0, 1], and the share of the variance of each ``[3]``.
    """
    height, width, num_features = features.shape
    table = np.asarray(features, dtype=np.float64).reshape(height * width, num_features)
    _, singular, loadings = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    loadings *= np.sign(loadings[np.arange(len(loadings)), np.abs(loadings).argmax(axis=1)])[
        :, None
    ]
    kept = min(3, len(loadings))
    scores = np.zeros((height * width, 3))
    scores[:, :kept] = (table - table.mean(axis=0)) @ loadings[:kept].T
    shares = np.zeros(3)
    shares[:kept] = singular[:kept] ** 2 / max(float((singular**2).sum()), 1e-30)
    low, high = np.quantile(scores, (0.01, 0.99), axis=0)
    stretched = (scores - low) / np.maximum(high - low, 1e-12)
    return np.clip(stretched, 0, 1).reshape(height, width, 3), shares
