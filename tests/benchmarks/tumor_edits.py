"""Pictures of the report on synthesis: one tumor at three sizes and places in a healthy head.

    python -m tests.benchmarks.tumor_edits downstream/reports/synthesis

A demonstration on two people: the shape is that of the one labelled tumor of CORE_MRI_DATA (brain1
of pyradiomics, BSD-3-Clause), the head is a label map of SynthSeg (Apache-2.0), the slices are made
by physics with the contrast that `synthseg_t1.yaml` tells and a tumor that takes up contrast agent.
Nothing was trained, and nothing of a scan but the outline of the tumor is in the pictures.
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
from core_mri.volume import Volume
from downstream.synthesis.cli import CONFIGS
from downstream.synthesis.config import SampleConfig
from downstream.synthesis.edits import Edit, insert
from downstream.synthesis.lesions import find_lesions
from downstream.synthesis.makers import PhysicsMaker, on_square
from tests.benchmarks.synthesis_study import draw

SIZES_ML = (4.0, 12.0, 30.0)
PLACES = (3, 5, 8)
"""Seeds, each of which draws a place and a turn for all sizes."""
TUMOR = "tumor"
INSIDE = ("cerebral white matter", "cerebral cortex", "thalamus", "caudate", "putamen", "pallidum")
SLAB = 3
"""Slices made on either side of the one that is shown."""
CONTRAST_AGENT = {TUMOR: (0.85, 1.0), "value 514": (0.8, 1.0), "*vessel": (0.8, 1.0)}


def main() -> None:
    """Write ``tumor.png`` and ``tumor_edits.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    data = Path(os.environ["CORE_MRI_DATA"])
    config = load_config(SampleConfig, CONFIGS / "synthseg_t1.yaml")
    head = read_volume(data / "labelmaps_synthseg" / "training_seg_13.nii.gz").reorient("SPL")
    values = [*config.task.labels.values()]
    values += sorted(set(np.unique(head.array).tolist()) - {0, *values})
    named = {value: name for name, value in config.task.labels.items()}
    names = {n: named.get(value, f"value {value}") for n, value in enumerate(values, 1)}
    classes = np.zeros(max(values) + 1, np.uint8)
    classes[values] = np.arange(1, len(values) + 1)
    healthy = Volume(classes[np.asarray(head.array)], head.affine, kind="label")
    healthy = on_square(healthy, max(healthy.shape[1:]))
    value = len(values) + 1
    names[value] = TUMOR
    inside = [
        n
        for n, name in names.items()
        if name.removeprefix("left ").removeprefix("right ") in INSIDE
    ]
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
