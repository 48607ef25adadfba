"""Pictures of the report on synthesis: lesions at will, on two brains, as a demonstration.

    python tests/benchmarks/synthesis_study.py GENERATOR OUT

GENERATOR is the run of `core-mri synthesize train ms` (T1 and FLAIR of one patient of open_ms_data,
from CORE_MRI_DATA). That patient's brain, its lesions healed, gets one of them at three sizes and
three places; the ICBM 152 average, which is healthy, gets one too. The figures show outlines of the
labels that the slices were made from. Licences: ICBM 152 may be copied with its notice,
open_ms_data is CC-BY; what is shown is synthetic.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri import read_volume
from core_mri.figure_style import INK, OUTLINE_COLORS, new_figure
from core_mri.volume import Volume
from downstream.synthesis.cases import complete
from downstream.synthesis.config import Anatomy
from downstream.synthesis.edits import Edit, Edited, heal, insert
from downstream.synthesis.lesions import Shape, find_lesions
from downstream.synthesis.makers import TrainedMaker, on_square

SIZES_ML = (0.5, 2.0, 6.0)
PLACES_MM = ((-27.0, -28.0, 24.0), (27.0, -22.0, 26.0), (-24.0, 22.0, 22.0))
LESION = 1
SEED = 0


def main() -> None:
    """Write the figures and ``edits.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generator")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["CORE_MRI_DATA"])
    maker = TrainedMaker(options.generator, "cpu")
    anatomy = Anatomy(**maker.card["anatomy"])
    inside = [value for value, name in maker.model.labels.items() if name != "lesion"][-2:]

    patient = data / "brain_ms_lesion" / "patient19"
    ill = labels_of(
        [patient / "t1.nii.gz", patient / "flair.nii.gz"], patient / "lesion_mask.nii.gz", anatomy
    )
    shapes = find_lesions(ill, [LESION], "patient19")
    healthy = ill
    for shape in find_lesions(ill, [LESION], "patient19", min_voxels=1):
        healthy = heal(healthy, shape, inside)
    icbm = data / "brain_icbm152"
    average = labels_of([icbm / "t1.nii.gz"], None, anatomy)

    told = []
    rows = []
    for place in PLACES_MM:
        for size in SIZES_ML:
            edit = Edit(seed=SEED, volume_ml=size, place_mm=place, mass_effect=0.5)
            told.append(shown(maker, healthy, shapes[0], edit, inside))
            rows.append(told[-1])
    draw(rows, maker.sequences, options.out / "sizes_and_places.png")
    given = shown(
        maker, average, shapes[0], Edit(seed=SEED, volume_ml=4.0, mass_effect=0.5), inside
    )
    untouched = shown(maker, average, None, None, inside, like=given)
    draw([untouched, given], maker.sequences, options.out / "healthy_brain.png")
    facts = [one["provenance"] for one in [*told, given]]
    (options.out / "edits.json").write_text(json.dumps(facts, indent=1) + "\n")
    for one in facts:
        error = one["volume_ml"] / one["asked"]["volume_ml"] - 1
        print(
            f"{one['asked']['volume_ml']:4.1f} ml asked, {one['volume_ml']:.3f} made ({error:+.2%})"
        )


def labels_of(images: Sequence[Path], mask: Path | None, anatomy: Anatomy) -> Volume:
    """Lesions and tissues of a brain without its skull, slices from foot to head."""
    volumes = [read_volume(path).reorient("SPL") for path in images]
    channels = []
    for volume in volumes:
        low, high = np.percentile(volume.array, [0.5, 99.5])
        scaled = np.clip((volume.array.astype(np.float32) - low) / (high - low), 0, 1)
        channels.append(scaled.astype(np.float32))
    lesions = np.zeros(volumes[0].shape, np.uint8)
    if mask is not None:
        lesions = (read_volume(mask).reorient("SPL").array > 0).astype(np.uint8)
    whole = complete(np.stack(channels), lesions, 1, anatomy, SEED)
    return Volume(whole, volumes[0].affine, kind="label")


def shown(
    maker: TrainedMaker,
    labels: Volume,
    shape: Shape | None,
    edit: Edit | None,
    inside: Sequence[int],
    like: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The slice through the middle of a lesion, or the one that another picture shows."""
    square = on_square(labels, maker.side(labels))
    edited: Edited | None = None
    if shape is not None and edit is not None:
        edited = insert(square, shape, edit, value=LESION, inside=inside)
    scan = maker.make(edited.labels if edited else square, SEED)
    place = like["slice"] if like else int(np.bincount(np.nonzero(edited.lesion)[0]).argmax())  # type: ignore[union-attr]
    own = scan.labels.array[place]
    box = tuple(slice(max(at.min() - 4, 0), at.max() + 5) for at in np.nonzero(own))
    if edited:
        assert np.array_equal(scan.labels.array == LESION, edited.lesion)
    return {
        "slice": place,
        "images": scan.channels[:, place][(slice(None), *box)],
        "lesion": own[box] == LESION,
        "provenance": edited.provenance if edited else {},
        "title": f"{edit.volume_ml:g} ml" if edit else "as it is",
    }


def draw(rows: Sequence[dict[str, Any]], sequences: Sequence[str], path: Path) -> None:
    """A column for each edit: sequences plain, and the last one with the outline of the lesion."""
    figure = new_figure(1.5 * len(rows), 1.6 * (len(sequences) + 1))
    axes = figure.subplots(len(sequences) + 1, len(rows), squeeze=False)
    for column, one in enumerate(rows):
        pictures: list[npt.NDArray[np.float32]] = [*one["images"], one["images"][-1]]
        for row, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        if one["lesion"].any():
            axes[-1, column].contour(one["lesion"], [0.5], colors=OUTLINE_COLORS[0], linewidths=1)
        axes[0, column].set_title(one["title"], fontsize=9, color=INK)
    for row, name in enumerate([*sequences, f"{sequences[-1]}, label"]):
        axes[row, 0].text(-0.08, 0.5, name, transform=axes[row, 0].transAxes, rotation=90,
                          va="center", ha="right", fontsize=9, color=INK)  # fmt: skip
    figure.subplots_adjust(
        left=0.35 / figure.get_figwidth(),
        right=0.995,
        bottom=0.01,
        top=0.93,
        wspace=0.03,
        hspace=0.03,
    )
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
