"""Tiny labelled data sets in each public layout, as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

SHAPE = (16, 14, 4)
AFFINE = np.diag([1.5, 1.25, 4.0, 1.0])


def image_array(seed: int, frames: int = 1) -> np.ndarray:
    """A body with a bright part, no two alike."""
    rng = np.random.default_rng(seed)
    i, j, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    found = [
        (i**2 + j**2 < rng.uniform(0.6, 0.9)) * (200 + 80 * i)
        + 150 * (np.abs(i - rng.uniform(-0.2, 0.2)) < 0.3)
        + rng.uniform(0, 5, SHAPE)
        for _ in range(frames)
    ]
    return np.stack(found, axis=-1).astype(np.int16) if frames > 1 else found[0].astype(np.int16)


def mask_array(values: tuple[int, ...] = (1,)) -> np.ndarray:
    """A stripe of each value."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for row, value in enumerate(values):
        mask[3 + 2 * row : 5 + 2 * row, 4:10, 1:3] = value
    return mask


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def save_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def nnunet(
    root: Path,
    *,
    cases: int = 6,
    tests: int = 0,
    labelled_tests: bool = False,
    channels: tuple[str, ...] = ("T1",),
    values: tuple[int, ...] = (1, 2),
    version: int = 2,
) -> dict[str, object]:
    """nnU-Net raw; returns the content of its dataset.json."""
    seed = 0
    for part, count in (("Tr", cases), ("Ts", tests)):
        for number in range(count):
            name = f"knee_{number + (100 if part == 'Ts' else 0):03d}"
            for channel in range(len(channels)):
                seed += 1
                path = root / f"images{part}" / f"{name}_{channel:04d}.nii.gz"
                save(path, image_array(seed))
            if part == "Tr" or labelled_tests:
                save(root / f"labels{part}" / f"{name}.nii.gz", mask_array(values))
    names = {"background": 0, "femur": 1, "tibia": 2}
    numbered = {str(i): name for i, name in enumerate(channels)}
    content: dict[str, object] = {"numTraining": cases}
    if version == 2:
        content |= {"channel_names": numbered, "labels": names, "file_ending": ".nii.gz"}
    else:
        listed = [f"knee_{number:03d}.nii.gz" for number in range(cases)]
        content |= {
            "modality": numbered,
            "labels": {str(value): name for name, value in names.items()},
            "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in listed],
            "test": [f"./imagesTs/knee_{number + 100:03d}.nii.gz" for number in range(tests)],
        }
    save_json(root / "dataset.json", content)
    return content


def decathlon(root: Path, *, cases: int = 5, tests: int = 1, frames: int = 4) -> dict[str, object]:
    """A task of the Medical Segmentation Decathlon: one 4D file a case."""
    names = [f"BRATS_{number + 1:03d}" for number in range(cases)]
    for seed, name in enumerate(names):
        save(root / "imagesTr" / f"{name}.nii.gz", image_array(seed, frames))
        save(root / "labelsTr" / f"{name}.nii.gz", mask_array((1, 2, 3)))
        (root / "imagesTr" / f"._{name}.nii.gz").write_text("resource fork")
    for seed in range(tests):
        save(root / "imagesTs" / f"BRATS_{485 + seed}.nii.gz", image_array(900 + seed, frames))
    content: dict[str, object] = {
        "name": "BRATS",
        "licence": "CC-BY-SA 4.0",
        "modality": dict(
            zip("0123", ("FLAIR", "T1w", "t1gd", "T2w")[:frames], strict=False)
        ),
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor",
                   "3": "enhancing tumour"},
        "numTraining": cases,
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ],
        "test": [f"./imagesTs/BRATS_{485 + seed}.nii.gz" for seed in range(tests)],
    }  # fmt: skip
    save_json(root / "dataset.json", content)
    return content


def monai(root: Path, *, folds: bool = False, tests: bool = True) -> dict[str, object]:
    """A MONAI list of 8 cases; two images share one label map, as in MMThigh."""
    entries = []
    for number in range(6):
        label = f"Label/P{number:02d}_1.nii.gz"
        save(root / label, mask_array((1, 2)))
        for folder in ("Fat", "Water") if number == 0 else ("Fat",):
            image = f"{folder}/P{number:02d}_1_{folder.lower()}.nii.gz"
            save(root / image, image_array(number + (50 if folder == "Water" else 0)))
            entries.append({"image": f"./{image}", "label": f"./{label}"})
    if folds:
        entries = [{**entry, "fold": number % 3} for number, entry in enumerate(entries)]
    content: dict[str, object] = {"training": entries[:-1], "validation": entries[-1:]}
    if folds:
        content = {"training": entries}
    if tests:
        save(root / "Fat" / "P90_1_fat.nii.gz", image_array(90))
        save(root / "Label" / "P90_1.nii.gz", mask_array((1, 2)))
        content["testing"] = [{"image": "Fat/P90_1_fat.nii.gz", "label": "Label/P90_1.nii.gz"}]
    save_json(root / "list.json", content)
    return content


def picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def mri_core_png(root: Path, *, patients: int = 6, slices: int = 2, separator: str = ",") -> None:
    """MRI-CORE's folder: gray pictures stored as RGB, masks 0 and 1, three lists."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for patient in range(patients):
        part = ("train", "val", "test")[patient % 3]
        for number in range(slices):
            name = f"Thigh-{patient:03d}-{number:02d}.png"
            gray = image_array(100 * patient + number)[:, :, 0].T.clip(0, 255).astype(np.uint8)
            picture(root / "images" / name, np.repeat(gray[:, :, None], 3, axis=2))
            picture(root / "masks" / name, mask_array((1,))[:, :, 1].T * (number + 1 < slices or 1))
            lines[part].append(f"{name}{separator}/{name}" if separator else name)
    for part, listed in lines.items():
        (root / f"{part}.txt").write_text("\n".join(listed) + "\n")
