"""Picture of the report on synthesis: pairs of the generators that `generator_study` trained.

    python -m tests.benchmarks.generator_pictures PAIRS downstream/reports/synthesis/hearts.png

PAIRS is its ``pairs.tar.gz``, unpacked. Hearts are shown, whose scans (Sunnybrook) are CC0; all
that is shown is synthetic, with the outline of the left ventricle that it was made from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core_mri import read_volume
from core_mri.figure_style import INK, OUTLINE_COLORS, new_figure
from downstream.synthesis.pairs import pair_folders
from tests.benchmarks.generator_study import GROUPS, PAIRS_SHOWN

GROUP = "heart"


def main() -> None:
    """Draw plain slices, and beside them those with the outline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    sources = {
        kind: pair_folders(options.pairs / GROUP / f"{kind}_pairs")
        for kind in ("physics", *GROUPS[GROUP].kinds)
    }
    sources = {kind: folders for kind, folders in sources.items() if folders}
    figure = new_figure(2 * PAIRS_SHOWN * 1.3 + 0.3, 1.3 * len(sources))
    axes = figure.subplots(len(sources), 2 * PAIRS_SHOWN, squeeze=False)
    for row, (kind, folders) in enumerate(sources.items()):
        for column, folder in enumerate(folders):
            volumes = (read_volume(folder / f"{name}.nii.gz") for name in ("image", "labels"))
            image, labels = (volume.reorient("SPL").array[0] for volume in volumes)
            for axis in axes[row, 2 * column : 2 * column + 2]:
                axis.imshow(image, cmap="gray")
                axis.set_axis_off()
            if labels.any():
                axes[row, 2 * column + 1].contour(
                    labels > 0, [0.5], colors=OUTLINE_COLORS[0], linewidths=1
                )
        axis = axes[row, 0]
        axis.text(-0.08, 0.5, kind, transform=axis.transAxes, rotation=90, va="center", ha="right",
                  fontsize=9, color=INK)  # fmt: skip
    figure.subplots_adjust(left=0.04, right=0.995, bottom=0.01, top=0.99, wspace=0.03, hspace=0.03)
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
