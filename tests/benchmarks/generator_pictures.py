"""Picture of the report on synthesis: hearts of several generators from the same label maps.

    python -m tests.benchmarks.generator_pictures GROUP_FOLDER --registry R --out hearts.png

GROUP_FOLDER holds the weights of `generator_study` (``spade``, ``diffusion``, ``latent``). Label
maps are those of training patients of Sunnybrook (CC0), turned and bent; the first row shows real
slices for comparison, all others are synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from core_mri.figure_style import INK, OUTLINE_COLORS, new_figure
from core_mri.physics.label_to_image import Physics
from data_registry.catalogue import Registry
from downstream.synthesis.cases import read_case, training_pairs
from downstream.synthesis.config import Anatomy
from downstream.synthesis.makers import Maker, PhysicsMaker, TrainedMaker, moved, on_square
from downstream.synthesis.run import on_grid
from tests.benchmarks.generator_study import GROUPS

COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is shown."""

    weights: Annotated[Path, tyro.conf.Positional]
    """Folder of the group."""
    registry: Path
    """Of the sources ``core_mri_data``."""
    out: Path
    """PNG."""
    group: str = "heart"
    """Of `generator_study`."""


def main(asked: Pictures) -> None:
    """Draw a row for each generator."""
    group = GROUPS[asked.group]
    registry = Registry.open(asked.registry)
    task, pairs = training_pairs(registry, group.task, patients=group.patients, seed=0)
    chosen = np.linspace(0, len(pairs) - 1, 2 * COLUMNS).round().astype(int)
    anatomy = Anatomy(tissues=group.tissues)
    cases = [read_case(registry, pairs[n], task, anatomy, 0) for n in chosen]
    makers: dict[str, Maker] = {"physics": PhysicsMaker(Physics(), ("",))}
    makers |= {
        kind: TrainedMaker(str(asked.weights / kind), "cpu")
        for kind in group.kinds
        if (asked.weights / kind).is_dir()
    }
    names = ["real", *makers]
    figure = new_figure(1.3 * COLUMNS + 0.3, 1.3 * len(names))
    axes = figure.subplots(len(names), COLUMNS, squeeze=False)
    for column in range(COLUMNS):
        other = cases[2 * column + 1]
        images, _ = on_grid(other, group.size)
        shown = [images[len(images) // 2, 0].numpy()]
        middle = cases[2 * column].labels
        labels = moved(on_square(middle, group.size), column, Physics())
        place = labels.shape[0] // 2
        shown += [maker.make(labels, column).channels[0, place] for maker in makers.values()]
        for axis, image, name in zip(axes[:, column], shown, names, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if name != "real":
                structure = labels.array[place] == 1
                if structure.any():
                    axis.contour(structure, [0.5], colors=OUTLINE_COLORS[0], linewidths=0.6)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.text(-0.08, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right",
                  fontsize=9, color=INK)  # fmt: skip
    figure.subplots_adjust(left=0.03, right=0.995, bottom=0.01, top=0.99, wspace=0.03, hspace=0.03)
    figure.savefig(asked.out, dpi=80)


if __name__ == "__main__":
    main(tyro.cli(Pictures))
