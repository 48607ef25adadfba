"""The picture of a job: what came in beside what went out, the middle slice."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
GAIN = 5
"""Differences are shown this many times as bright."""


def strip(panels: dict[str, Image], *, reference: Image | None = None) -> bytes:
    """PNG of slices ``[H, W]`` side by side in the gray values of the first one.

    Args:
        panels: By title.
        reference: Adds itself and, for each panel, the brightened difference to it below.
    """
    from core_mri.figure_style import INK, SMALL_PT, new_figure

    rows = [dict(panels)]
    if reference is not None:
        rows[0]["reference"] = reference
        rows.append(
            {f"{GAIN} x |{name} - reference|": GAIN * np.abs(image - reference)
             for name, image in panels.items()}
        )  # fmt: skip
    ruler = next(iter(panels.values())) if reference is None else reference
    top = float(np.quantile(ruler, 0.995)) or 1.0
    cell, line = 2.4, 0.26  # inches
    width, height = cell * len(rows[0]), (cell + line) * len(rows)
    figure = new_figure(width, height)
    for r, row in enumerate(rows):
        for c, (title, image) in enumerate(row.items()):
            bottom = height - (r + 1) * (cell + line)
            axes = figure.add_axes(
                ((c * cell + 0.02) / width, bottom / height, (cell - 0.04) / width, cell / height)
            )
            axes.imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axes.set_facecolor("black")
            axes.set_xticks([])
            axes.set_yticks([])
            figure.text(
                (c * cell + 0.04) / width, (bottom + cell + 0.07) / height, title,
                size=SMALL_PT, color=INK,
            )  # fmt: skip
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
