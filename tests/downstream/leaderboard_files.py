"""Small tasks, their references, and submissions of every quality."""

from __future__ import annotations

import uuid
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from core_mri.errors import CoreMRIError
from core_mri.files.nifti import write_nifti
from core_mri.physics.phantoms import phantom_volume
from core_mri.volume import Volume
from downstream.leaderboard.board import Board, create
from downstream.leaderboard.submitting import submit
from downstream.leaderboard.task import TaskConfig, load_card

CARD = {
    "method": "A network", "training_data": "100 patients", "saw_test_patients": False,
    "parameters": 1000, "licence": "Apache-2.0", "limits": "Metal", "reference": "none",
}  # fmt: skip
Arrays = dict[str, npt.NDArray[Any]]


def knee_task(**changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": "knees", "title": "Knees", "description": "Reconstruct.", "kind": "reconstruction",
        "metric": "SSIM", "target": "reconstruction_esc", "structures": (), "patients": {},
        "per_day": 100, "attempts_per_day": 200,
    }  # fmt: skip
    return TaskConfig(**{**values, **changes})


def tissue_task(**changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "name": "tissue", "title": "Tissue", "description": "Label.", "kind": "segmentation",
        "metric": "dice", "target": "", "structures": ("one", "two"), "patients": {},
        "per_day": 100, "attempts_per_day": 200,
    }  # fmt: skip
    return TaskConfig(**{**values, **changes})


def images(number: int = 8) -> Arrays:
    """References ``[2, 40, 32]``, with noise as scanners give it."""
    found: Arrays = {}
    for subject in range(number):
        volume, _ = phantom_volume("knee", subject, "T1", size=40, num_slices=2)
        noise = np.random.default_rng(subject).normal(0, 0.02, (2, 40, 32))
        shown = np.asarray(volume.array, np.float32).T[:2, :40, 4:36]
        found[f"file{subject}.h5"] = np.abs(shown / shown.max() + noise).astype(np.float32)
    return found


def degraded(references: Arrays, noise: float, seed: int) -> Arrays:
    """As a method of some quality would give them."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + rng.normal(0, noise, array.shape)).astype(np.float32)
        for name, array in references.items()
    }


def masks(number: int = 8) -> dict[str, Volume]:
    """References of two structures, over 1000 voxels each file."""
    found = {}
    for subject in range(number):
        array = np.zeros((20, 20, 8), np.uint8)
        array[3 : 15 + subject % 3, 2:16, :7] = 1
        array[6:10, 6 : 9 + subject % 4, 2:5] = 2
        affine = np.diag([1.0, 1.5, 3.0, 1.0])
        affine[:3, 3] = subject
        found[f"case{subject}.nii.gz"] = Volume(array, affine, "label")
    return found


def flipped(references: dict[str, Volume], share: float, seed: int) -> dict[str, Volume]:
    """With a share of the voxels of other structures."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, volume in references.items():
        array = volume.array.copy()
        wrong = rng.random(array.shape) < share
        array[wrong] = rng.integers(0, 3, int(wrong.sum()))
        found[name] = volume.with_array(array)
    return found


def write_images(folder: Path, arrays: Arrays, dataset: str = "reconstruction") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        with h5py.File(folder / name, "w") as file:
            file[dataset] = array
    return folder


def write_masks(folder: Path, volumes: dict[str, Volume]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        write_nifti(volume, folder / name)
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def knee_board(folder: Path, **changes: Any) -> tuple[Board, Arrays]:
    references = images()
    source = write_images(folder / "references", references, "reconstruction_esc")
    return create(knee_task(**changes), source, folder / "board"), references


def tissue_board(folder: Path, **changes: Any) -> tuple[Board, dict[str, Volume]]:
    references = masks()
    source = write_masks(folder / "references", references)
    return create(tissue_task(**changes), source, folder / "board"), references


class Hall:
    """A board, its references as the test knows them, and a place for submissions."""

    def __init__(self, folder: Path, board: Board, references: Any) -> None:
        self.folder, self.board, self.references = folder, board, references
        self.number = 0

    def place(self) -> Path:
        self.number += 1
        return self.folder / f"s{self.number}"

    def submit(self, source: Path, **changes: Any) -> str:
        options: dict[str, Any] = {
            "owner": "ada", "name": f"method {self.number}", "card": load_card(CARD),
            "ticket": uuid.uuid4().hex, "scratch": self.folder,
        }  # fmt: skip
        return submit(self.board, source, **{**options, **changes})

    def images(self, arrays: Arrays, **changes: Any) -> str:
        return self.submit(zipped(write_images(self.place(), arrays)), **changes)

    def masks(self, volumes: dict[str, Volume], **changes: Any) -> str:
        return self.submit(zipped(write_masks(self.place(), volumes)), **changes)

    def refused(self, source: Path, **changes: Any) -> CoreMRIError:
        with pytest.raises(CoreMRIError) as caught:
            self.submit(source, **changes)
        return caught.value
