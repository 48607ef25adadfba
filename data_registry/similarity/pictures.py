"""Figures of a comparison: heat map, map of features, nearest and farthest slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from core_mri.figure_style import FAINT, INK, LINE_COLORS, SMALL_PT, cycle, new_axes
from core_mri.volume import SLICE_ORIENTATION
from data_registry.similarity.compare import Comparison, Features, nearest
from data_registry.similarity.features import foreground_slices
from data_registry.similarity.measure import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from data_registry.catalogue import Registry

SHOWN_SLICES = 6
_MOST_POINTS = 600
_MARKERS = "osD^vP"


def heat_map(by_task: dict[str, Sequence[Measurement]]) -> Figure:
    """KID of each source to each task; darker is closer, a dash where none can be told."""
    tasks = list(by_task)
    sources = list(dict.fromkeys(one.features for found in by_task.values() for one in found))
    values = np.full((len(sources), len(tasks)), np.nan)
    for column, task in enumerate(tasks):
        for one in by_task[task]:
            values[sources.index(one.features), column] = np.nan if one.value is None else one.value
    figure, axes = new_axes(2.6 + 1.5 * len(tasks), 0.9 + 0.32 * len(sources), "")
    shown = np.log10(np.maximum(values, 1e-4))
    told = shown[np.isfinite(shown)]
    low, high = (told.min() - 0.5, told.max() + 0.5) if len(told) else (0.0, 1.0)
    axes.pcolormesh(
        shown[::-1], cmap="Blues_r", vmin=low, vmax=high, edgecolors="white", linewidth=2
    )
    for (row, column), value in np.ndenumerate(values[::-1]):
        missing = np.isnan(value)
        dark = not missing and shown[::-1][row, column] < (low + high) / 2
        axes.text(
            column + 0.5, row + 0.5, "\u2013" if missing else f"{value:.3g}",
            ha="center", va="center", size=SMALL_PT, color="white" if dark else INK,
        )  # fmt: skip
    axes.set_xticks(np.arange(len(tasks)) + 0.5, tasks)
    axes.set_yticks(np.arange(len(sources)) + 0.5, sources[::-1])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def feature_map(features: Features, task: str, most_sources: int = 5) -> Figure:
    """Slices on the two largest principal axes of the pretraining features."""
    values, axes_of = np.linalg.eigh(features.moments.covariance)
    plane, shares = axes_of[:, ::-1][:, :2], values[::-1][:2] / values.sum()
    figure, axes = new_axes(7.2, 5.0, "")
    other = features.pretraining.first(_MOST_POINTS)
    sources, counts = np.unique(other.labels["source"], return_counts=True)
    largest = sources[np.argsort(-counts)][:most_sources]
    at = (other.rows - features.moments.mean) @ plane
    rest = ~np.isin(other.labels["source"], largest)
    groups = [(f"{name} (pretraining)", other.labels["source"] == name) for name in largest]
    if rest.any():
        groups.append(("further sources (pretraining)", rest))
    for index, (name, own) in enumerate(groups):
        axes.scatter(
            at[own, 0], at[own, 1], 14, color=cycle((*LINE_COLORS[2:], FAINT), index),
            marker=cycle(_MARKERS, index + 1), alpha=0.5, linewidth=0, label=name,
        )  # fmt: skip
    own = (features.task.first(_MOST_POINTS).rows - features.moments.mean) @ plane
    axes.scatter(
        own[:, 0], own[:, 1], 22, color=LINE_COLORS[1], marker="x", linewidth=1.2, label=task
    )
    axes.set_xlabel(f"first principal axis ({shares[0]:.0%} of the variance of pretraining)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=SMALL_PT,
        labelcolor=INK,
    )  # fmt: skip
    return figure


def extreme_slices(
    registry: Registry, found: Comparison, barred: dict[str, str]
) -> tuple[Figure | None, str]:
    """The task slices nearest to pretraining and those farthest from it.

    Args:
        registry: Holds the task.
        found: The comparison.
        barred: Sources whose licence lets no picture be given away, with the reason.

    Returns:
        The figure, None when no source may be shown, and what to say of those left out.
    """
    from core_mri.pictures import contact_sheet

    features = found.features[0]
    apart = nearest(features)
    rows = {row.volume_id: row for row in found.task.rows}
    order = [
        int(i) for i in np.argsort(apart) if rows[features.task.places[i][0]].source not in barred
    ]
    own = {row.source for row in found.task.rows}
    left_out = "; ".join(f"{name}: {why}" for name, why in sorted(barred.items()) if name in own)
    told = f" Not shown for their licence: {left_out}." if left_out else ""
    if not order:
        return None, f"No slice of the task may be shown.{told}"
    near, far = _of_different_volumes(order, features), _of_different_volumes(order[::-1], features)
    chosen = [*near, *(i for i in far if i not in near)]
    images, titles, orientations, spacings = [], [], [], []
    for i in chosen:
        volume_id, place = features.task.places[i]
        row = rows[volume_id]
        images.append(foreground_slices(registry, row)[place])
        titles.append(f"{'near' if i in near else 'far'} {apart[i]:.3g}")
        orientations.append(SLICE_ORIENTATION[row.plane][1:])  # type: ignore[index]
        spacings.append((row.spacing_mm[1], row.spacing_mm[2]))
    figure = contact_sheet(
        images, titles, SHOWN_SLICES, orientations=orientations, spacings_mm=spacings,
        windows=[(0.0, 1.0)] * len(images),
    )  # fmt: skip
    return figure, (
        "Task slices nearest to a pretraining slice, and those farthest from all, each of another "
        f"volume, with that distance.{told}"
    )


def _of_different_volumes(order: Sequence[int], features: Features) -> list[int]:
    """The first positions, one a volume."""
    taken: dict[str, int] = {}
    for i in order:
        taken.setdefault(features.task.places[i][0], i)
        if len(taken) == SHOWN_SLICES:
            break
    return list(taken.values())
