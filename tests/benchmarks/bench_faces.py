"""Faces: recall, brain lost and CPU time on heads simulated from SynthSeg's label maps.

    CORE_MRI_DATA=DIR python tests/benchmarks/bench_faces.py

The whole head (training_seg_08) gets T1, T2 and FLAIR contrasts by tissue, is turned by up to 12
degrees, stretched by up to 10 %, shaded, and noisy (Rician), at 1 mm and in 5-mm slices. Face: skin
and soft tissue in front of the eyes' back and below the brow; eyes apart. The crop's planes were
placed on this head and one more, so that its anatomy is not independent; contrasts and poses are.
The baseline is the pose before the fit: the template laid on by its center of mass alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_registry.deidentify import head_template
from data_registry.deidentify.faces import HeadFit, fit_head, in_face
from data_registry.deidentify.heads import look_at_series

TISSUES = {
    "T1": {"white": 220, "gray": 160, "csf": 40, "stem": 200, "bone": 60, "fat": 240, "soft": 150},
    "T2": {"white": 90, "gray": 130, "csf": 240, "stem": 95, "bone": 40, "fat": 170, "soft": 90},
    "FLAIR": {
        "white": 110,
        "gray": 150,
        "csf": 20,
        "stem": 110,
        "bone": 40,
        "fat": 180,
        "soft": 100,
    },
}
LABELS = {
    "white": (2, 41, 7, 46),
    "csf": (4, 43, 14, 15, 24),
    "stem": (16, 28, 60),
    "bone": (515,),
    "fat": (516,),
}
FACE_BACK, BROW = 180, 140
"""Of the label map, in voxels to the front and up."""


def head(contrast: str, seed: int, slice_mm: float) -> tuple[Any, np.ndarray, np.ndarray]:
    """An image, its labels, and where each labeled voxel lies in the label map (front, up)."""
    import SimpleITK

    chance = np.random.default_rng(seed)
    path = Path(os.environ["CORE_MRI_DATA"]) / "labelmaps_synthseg" / "training_seg_08.nii.gz"
    labels = SimpleITK.ReadImage(str(path), SimpleITK.sitkInt32)
    array = SimpleITK.GetArrayFromImage(labels)
    tissue = {v: n for n, values in LABELS.items() for v in values}
    painted = np.zeros(array.shape, np.float32)
    for value in np.unique(array)[1:]:
        name = tissue.get(int(value), "gray" if value < 100 else "soft")
        painted[array == value] = TISSUES[contrast][name] * chance.uniform(0.9, 1.1)
    image = SimpleITK.GetImageFromArray(painted)
    image.CopyInformation(labels)
    center = labels.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in labels.GetSize()])
    turn = SimpleITK.Euler3DTransform(
        center,
        *map(float, chance.uniform(-12, 12, 3) * np.pi / 180),
        chance.uniform(-10, 10, 3).tolist(),
    )
    move = SimpleITK.AffineTransform(3)
    move.SetCenter(center)
    linear = np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag(chance.uniform(0.9, 1.1, 3))
    move.SetMatrix(linear.ravel().tolist())
    move.SetTranslation(turn.GetTranslation())
    grid = SimpleITK.ConstantPad(labels, [20] * 3, [20] * 3, 0)
    size, spacing = list(grid.GetSize()), [1.0, 1.0, 1.0]
    up = int(np.argmax(np.abs(np.array(grid.GetDirection()).reshape(3, 3)[2])))
    spacing[up], size[up] = slice_mm, int(size[up] / slice_mm)
    space = (size, move), (grid.GetOrigin(), spacing, grid.GetDirection(), 0)
    image = SimpleITK.Resample(image, *space[0], SimpleITK.sitkLinear, *space[1])
    seen = SimpleITK.Resample(labels, *space[0], SimpleITK.sitkNearestNeighbor, *space[1])
    values = SimpleITK.GetArrayFromImage(image)
    z, y, x = np.ogrid[
        -1 : 1 : values.shape[0] * 1j, -1 : 1 : values.shape[1] * 1j, -1 : 1 : values.shape[2] * 1j
    ]
    a, b, c = chance.uniform(-0.2, 0.2, 3)
    values = values * (1 + a * z + b * y + c * x)
    noisy = np.hypot(values + chance.normal(0, 6, values.shape), chance.normal(0, 6, values.shape))
    made = SimpleITK.GetImageFromArray(noisy.astype(np.float32))
    made.CopyInformation(image)
    found = SimpleITK.GetArrayFromImage(seen)
    places = np.argwhere(found > 0)
    points = places[:, ::-1] @ head_template.directions(made).T + np.array(made.GetOrigin())
    moved = (
        (points - np.array(center)) @ linear.T + np.array(center) + np.array(move.GetTranslation())
    )
    inside = (moved - np.array(labels.GetOrigin())) @ np.linalg.inv(
        head_template.directions(labels)
    ).T
    front, height = inside[:, 2], labels.GetSize()[1] - 1 - inside[:, 1]
    return made, found[tuple(places.T)], np.column_stack((points, front, height))


def laid_on(image: Any) -> HeadFit:
    """The template moved to the center of mass, and no further."""
    import SimpleITK

    moving = head_template.coarse_template()
    start = SimpleITK.CenteredTransformInitializer(
        head_template.on_grid(image), moving, SimpleITK.Euler3DTransform(),
        SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
    )  # fmt: skip
    template = head_template.full_template()
    to_voxels = np.linalg.inv(head_template.directions(template))
    offset = np.array(start.GetTranslation()) - np.array(template.GetOrigin())
    return HeadFit(
        tuple(map(tuple, np.column_stack((to_voxels, to_voxels @ offset)).tolist())), 0, 1, 1, 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    flags = parser.parse_args()
    print(
        f"{'':22}{'information':>12}{'Dice':>7}{'face':>7}{'CPU s':>7}"
        "   crop: face  eyes  brain lost   deface: face  eyes  brain lost"
    )
    rows: dict[str, list[list[float]]] = {"fitted": [], "laid on": []}
    for contrast in TISSUES:
        for seed in range(flags.seeds):
            slice_mm = 1.0 if seed % 2 == 0 else 5.0
            image, labels, where = head(contrast, seed, slice_mm)
            start = time.process_time()
            fit = fit_head(image)
            spent = time.process_time() - start
            face = (labels >= 500) & (where[:, 3] >= FACE_BACK) & (where[:, 4] <= BROW)
            brain = (labels < 100) & (labels != 24)
            for name, used in (("fitted", fit), ("laid on", laid_on(image))):
                row = [used.information, used.dice, used.overlap, spent]
                for way in ("crop", "deface"):
                    gone = in_face(used, where[:, :3], way)
                    row += [gone[part].mean() for part in (face, labels == 506, brain)]
                rows[name].append(row)
            show(f"{contrast} {slice_mm:.0f} mm, seed {seed}", rows["fitted"][-1])
    for name, found in rows.items():
        show(f"{name}, mean", np.mean(found, axis=0).tolist())
        worst = [*np.min(found, axis=0)[:3], *np.max(found, axis=0)[3:4]]
        for start in (4, 7):
            part = np.array(found)[:, start : start + 3]
            worst += [part[:, 0].min(), part[:, 1].min(), part[:, 2].max()]
        show(f"{name}, worst", list(map(float, worst)))
    real()


def real() -> None:
    """Fits of the whole heads of CORE_MRI_DATA, whose faces nobody has outlined."""
    import SimpleITK

    data = Path(os.environ["CORE_MRI_DATA"])
    for series in ("brain_tcia_btp003/t1post_dicom", "dicom/ge_head_pd_series"):
        fit = look_at_series(sorted((data / series).glob("*.dcm")), "crop").fit
        print(f"{series}: {fit.to_mapping() if fit else 'no fit'}")
    path = data / "brain_tcia_btp003" / "flair_reg.nii.gz"
    print(f"{path.name}: {fit_head(SimpleITK.ReadImage(str(path))).to_mapping()}")


def show(name: str, row: list[float]) -> None:
    figures = f"{row[0]:>12.3f}{row[1]:>7.3f}{row[2]:>7.3f}{row[3]:>7.1f}"
    print(f"{name:22}{figures}" + "".join(f"{value:>12.4f}" for value in row[4:]), flush=True)


if __name__ == "__main__":
    main()
