"""nnU-Net itself, through the commands of the package `nnunetv2` where they are installed.

A cell writes its examples in nnU-Net's raw layout, plans and preprocesses them, trains the 2D
configuration on one fold, whose validation cases are those of the suite, and segments the test
volumes with the checkpoint that is best on them. Steps come in nnU-Net's epochs of 250; the
shortest of its schedules that has as many as the suite gives is taken. Single slices are volumes of
one slice.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.files import read_volume, write_volume
from core_mri.volume import Volume
from downstream.segmentation.data import Pair, Shot, read_mask
from downstream.segmentation.sequences import read_channels

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.config import Task

MISSING = "nnunetv2 is not installed: pip install nnunetv2"
NUMBER = "501"
DATASET = f"Dataset{NUMBER}_cell"
STEPS_PER_EPOCH = 250
SCHEDULES = {1: "_1epoch", 1000: "", 2000: "_2000epochs", 4000: "_4000epochs", 8000: "_8000epochs"}
SCHEDULES |= {count: f"_{count}epochs" for count in (5, 10, 20, 50, 100, 250)}
"""Epochs to the ending of the name of a trainer that comes with nnunetv2."""
LOG = "nnunet.log"


@dataclass(frozen=True)
class Segmented:
    """What the program leaves behind."""

    masks: Mapping[str, npt.NDArray[np.uint8]]
    """Image volume id to class indices [S, H, W] on the stored grid."""
    notes: tuple[str, ...]
    cpu_seconds: float
    """Of its processes."""

    def read(self, pair: Pair) -> npt.NDArray[np.uint8]:
        """The mask of a test volume."""
        return self.masks[pair.image.volume_id]


def version() -> str:
    """Of the program whose commands are on PATH; empty when there is none."""
    if shutil.which("nnUNetv2_train") is None:
        return ""
    try:
        return importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return "in an environment of its own"


def schedule(steps: int) -> tuple[int, str]:
    """Epochs and trainer of the shortest schedule of at least `steps` steps, or the longest."""
    enough = [count for count in sorted(SCHEDULES) if count * STEPS_PER_EPOCH >= steps]
    count = enough[0] if enough else max(SCHEDULES)
    return count, f"nnUNetTrainer{SCHEDULES[count]}"


def segment(
    shots: Sequence[Shot],
    validation: Sequence[Shot],
    test: Sequence[Pair],
    *,
    task: Task,
    registry: Registry,
    folder: Path,
    steps: int,
    device: str,
) -> Segmented:
    """Train and segment; an interrupted training is continued by the same call.

    Args:
        shots: Training examples.
        validation: Of other patients; without any, the last checkpoint is used.
        test: Volumes to segment.
        task: Structures.
        registry: Where the voxels are.
        folder: Gets ``nnunet/``, whose models and log stay; copies of scans do not.
        steps: At least as many are trained.
        device: cpu, or cuda with any number.

    Raises:
        DataError: DATA-30 when a command fails.
    """
    started = _children_seconds()
    home = folder.absolute() / "nnunet"
    raw, prepared, predicted = home / "raw", home / "preprocessed", home / "predicted"
    data = raw / DATASET
    split = prepared / DATASET / "splits_final.json"
    if not split.is_file():
        names = {
            part: [_write(data, f"{part}{i:03d}", shot, task, registry) for i, shot in enumerate(s)]
            for part, s in (("train", shots), ("val", validation))
        }
        for i, pair in enumerate(test):
            _write_image(data / "imagesTs", f"test{i:03d}", pair, None, registry)
        _write_facts(data, sum(map(len, names.values())), task)
        _call("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "2d", "-np", "1", home=home)
        split.write_text(json.dumps([names]), encoding="utf-8")
    epochs, trainer = schedule(steps)
    fold = ["0" if validation else "all"]
    on = ["-tr", trainer, "-device", device.partition(":")[0]]
    _call("nnUNetv2_train", NUMBER, "2d", *fold, "--c", *on, home=home)
    checkpoint = "checkpoint_best.pth" if validation else "checkpoint_final.pth"
    _call(
        "nnUNetv2_predict", "-d", NUMBER, "-c", "2d", "-f", *fold, "-chk", checkpoint, *on,
        "-i", str(data / "imagesTs"), "-o", str(predicted), home=home,
    )  # fmt: skip
    masks = {}
    for i, pair in enumerate(test):
        found = read_volume(predicted / f"test{i:03d}.nii.gz").array
        masks[pair.image.volume_id] = found.astype(np.uint8)
    for copies in (raw, prepared, predicted):
        shutil.rmtree(copies)
    notes = (
        f"nnunetv2 {version()}, 2d, {trainer}: {epochs * STEPS_PER_EPOCH} steps instead of {steps}",
    )
    return Segmented(masks, notes, round(_children_seconds() - started, 2))


def _write(data: Path, name: str, shot: Shot, task: Task, registry: Registry) -> str:
    """An example and its mask; returns the name."""
    _write_image(data / "imagesTr", name, shot.pair, shot.slices, registry)
    classes = read_mask(registry, shot.pair, task)
    _write_slices(data / "labelsTr" / f"{name}.nii.gz", classes, shot.pair, shot.slices)
    return name


def _write_image(
    folder: Path, name: str, pair: Pair, slices: Sequence[int] | None, registry: Registry
) -> None:
    for number, channel in enumerate(read_channels(registry, pair.images)):
        _write_slices(folder / f"{name}_{number:04d}.nii.gz", channel, pair, slices)


def _write_slices(
    path: Path, array: npt.NDArray[np.generic], pair: Pair, slices: Sequence[int] | None
) -> None:
    affine = np.array(pair.image.affine).reshape(4, 4)
    if slices is not None:
        (index,) = slices
        array = array[index : index + 1]
        affine[:3, 3] += index * affine[:3, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(array, affine, "label" if array.dtype == np.uint8 else "image"), path)


def _write_facts(data: Path, count: int, task: Task) -> None:
    facts = {
        "channel_names": {str(i): name for i, name in enumerate(task.sequences or ("MRI",))},
        "labels": {"background": 0, **{n: i for i, n in enumerate(task.labels, start=1)}},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")


def _call(*command: str, home: Path) -> None:
    """Run a command with its output in the log.

    Raises:
        DataError: DATA-30 with the last line it said.
    """
    folders = {"raw": "raw", "preprocessed": "preprocessed", "results": "results"}
    places = {f"nnUNet_{name}": str(home / folder) for name, folder in folders.items()}
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOG).open("a", encoding="utf-8") as log:
        done = subprocess.run(
            command, env={**os.environ, **places}, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        said = (home / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "nothing")
        raise DataError(
            "DATA-30",
            f"{command[0]} ended with {done.returncode}, its last words: {last.strip()[:200]}",
            fix=f"See {home / LOG}; the same command continues.",
        )


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
