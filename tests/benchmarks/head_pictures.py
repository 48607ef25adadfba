"""Pictures of the report on synthesis: heads by physics, and one tumor at three sizes and places.

    python -m tests.benchmarks.head_pictures downstream/reports/synthesis

The heads are label maps of SynthSeg (Apache-2.0) as ``synthseg.yaml`` and ``synthseg_t1.yaml`` take
them. The tumor is a demonstration on two people: its shape is that of the one labelled tumor of
CORE_MRI_DATA (brain1 of pyradiomics, BSD-3-Clause), its place a healthy head, its signal that of a
tumor that takes up contrast agent. Nothing was trained, and nothing of a scan but the outline of
the tumor is in the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core_mri import read_volume
from core_mri.config import load_config
from core_mri.figure_style import new_figure
from core_mri.volume import Volume
from downstream.synthesis.cli import CONFIGS
from downstream.synthesis.config import SampleConfig
from downstream.synthesis.edits import Edit, insert
from downstream.synthesis.lesions import find_lesions
from downstream.synthesis.makers import PhysicsMaker, moved, on_square
from tests.benchmarks.synthesis_study import draw

SIZES_ML = (4.0, 12.0, 30.0)
PLACES = (3, 5, 8)
"""Seeds, each of which draws a place and a turn for all sizes."""
TUMOR = "tumor"
INSIDE = ("cerebral white matter", "cerebral cortex", "thalamus", "caudate", "putamen", "pallidum")
HEIGHTS = (0.35, 0.4, 0.5, 0.5, 0.55, 0.6, 0.65, 0.7)
"""Of the slices of heads, as a share."""
SLAB = 3
"""Slices made on either side of the one that is shown."""
CONTRAST_AGENT = {TUMOR: (0.85, 1.0), "value 514": (0.8, 1.0), "*vessel": (0.8, 1.0)}


def main() -> None:
    """Write ``heads.png``, ``tumor.png`` and ``tumor_edits.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    config = load_config(SampleConfig, CONFIGS / "synthseg_t1.yaml")
    healthy, names = head_of("training_seg_13.nii.gz", config)
    heads(out / "heads.png")
    tumors(healthy, names, config, out)


def head_of(name: str, config: SampleConfig) -> tuple[Volume, dict[int, str]]:
    """A label map on a square grid as classes from 1, and their names."""
    path = Path(os.environ["CORE_MRI_DATA"]) / "labelmaps_synthseg" / name
    head = read_volume(path).reorient("SPL")
    values = [*config.task.labels.values()]
    values += sorted(set(np.unique(head.array).tolist()) - {0, *values})
    named = {value: name for name, value in config.task.labels.items()}
    names = {n: named.get(value, f"value {value}") for n, value in enumerate(values, 1)}
    classes = np.zeros(max(values) + 1, np.uint8)
    classes[values] = np.arange(1, len(values) + 1)
    healthy = Volume(classes[np.asarray(head.array)], head.affine, kind="label")
    return on_square(healthy, max(healthy.shape[1:])), names


def heads(path: Path) -> None:
    """Draw slices of every contrast, and of those that look like T1."""
    figure = new_figure(1.4 * len(HEIGHTS), 2.8)
    axes = figure.subplots(2, len(HEIGHTS))
    for row, name in enumerate(("synthseg", "synthseg_t1")):
        config = load_config(SampleConfig, CONFIGS / f"{name}.yaml")
        for column, height in enumerate(HEIGHTS):
            labels, names = head_of(f"training_seg_{'08' if column % 2 else '13'}.nii.gz", config)
            maker = PhysicsMaker(
                config.physics, config.task.sequences or ("",), names, config.signals
            )
            middle = round(height * len(labels.array))
            part = Volume(
                labels.array[middle - SLAB : middle + SLAB + 1], labels.affine, kind="label"
            )
            scan = maker.make(moved(part, column, config.physics), column)
            axes[row, column].imshow(scan.channels[0, SLAB], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.99, wspace=0.02, hspace=0.02)
    figure.savefig(path, dpi=80)


def tumors(healthy: Volume, names: dict[int, str], config: SampleConfig, out: Path) -> None:
    """Put the tumor in, at every place and size."""
    value = len(names) + 1
    names = names | {value: TUMOR}
    inside = [
        n
        for n, name in names.items()
        if name.removeprefix("left ").removeprefix("right ") in INSIDE
    ]
    data = Path(os.environ["CORE_MRI_DATA"])
    scan = read_volume(data / "brain_tumor_pyradiomics" / "brain1_label.nrrd")
    (shape, *_) = find_lesions(replace(scan, kind="label"), [1], "brain1")
    maker = PhysicsMaker(
        config.physics, ("T1",), names, {"T1": CONTRAST_AGENT | config.signals["T1"]}
    )

    rows: list[dict[str, Any]] = []
    for seed in PLACES:
        place = None
        for size in reversed(SIZES_ML):
            edit = Edit(seed=seed, volume_ml=size, place_mm=place, mass_effect=0.6)
            edited = insert(healthy, shape, edit, value=value, inside=inside)
            x, y, z = edited.provenance["place_mm"]
            place = (x, y, z)
            middle = int(np.bincount(np.nonzero(edited.lesion)[0]).argmax())
            slab = slice(middle - SLAB, middle + SLAB + 1)
            part = Volume(edited.labels.array[slab], edited.labels.affine, kind="label")
            images = maker.make(part, seed=1)
            shown = edited.labels.array[middle]
            assert np.array_equal(edited.labels.array == value, edited.lesion)
            rows.append(
                {
                    "images": images.channels[:, SLAB],
                    "lesion": shown == value,
                    "provenance": edited.provenance,
                    "title": f"{size:g} ml",
                }
            )
    rows = [rows[3 * place + size] for place in range(3) for size in (2, 1, 0)]
    draw(rows, ("T1 contrast",), out / "tumor.png")
    facts = [one["provenance"] for one in rows]
    (out / "tumor_edits.json").write_text(json.dumps(facts, indent=1) + "\n")
    for one in facts:
        error = one["volume_ml"] / one["asked"]["volume_ml"] - 1
        print(
            f"{one['asked']['volume_ml']:4.1f} ml asked, {one['volume_ml']:.3f} made ({error:+.2%})"
        )


if __name__ == "__main__":
    main()
