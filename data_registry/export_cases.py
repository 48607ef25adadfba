"""Images with their label maps as nnU-Net v2 and MONAI (Medical Segmentation Decathlon) read them.

A case is one image and the one label map on its voxels; patients of the test split stand apart, and
folds are of whole patients. Sources: nnU-Net, "dataset_format.md" and "manual_data_splits.md" (v2);
`monai.data.load_decathlon_datalist`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core_mri.errors import ConfigError, DataError
from core_mri.files.nifti import write_nifti
from data_registry.governance.licences import mixture

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

_MAX_FOLDS = 5


@dataclass(frozen=True)
class Case:
    """One image with its label map."""

    image: VolumeRow
    label: VolumeRow | None

    @property
    def name(self) -> str:
        """File name without suffixes: patient and volume."""
        return f"{self.image.subject_id}_{self.image.volume_id}"


class Cases:
    """The cases of an export, and where their files go.

    Args:
        registry: The registry.
        rows: Images and label maps that were selected.
        layout: nnU-Net has no place for images without labels, which are left out; MONAI has.

    Raises:
        ConfigError: CONFIG-05 when an image has several label maps among `rows`, or one value has
            two names.
        DataError: DATA-09 when nnU-Net would get no case to train on.
    """

    def __init__(
        self, registry: Registry, rows: list[VolumeRow], layout: Literal["nnunet", "monai"]
    ) -> None:
        self._registry = registry
        self._layout = layout
        self.cases = sorted(_pair(registry, rows), key=lambda case: case.name)
        if layout == "nnunet":
            self.cases = [case for case in self.cases if case.label is not None]
            if all(case.image.split == "test" for case in self.cases):
                raise DataError(
                    "DATA-09",
                    "nnU-Net needs images with label maps of patients that are not for testing, "
                    f"and there are none among the {len(rows)} selected volumes.",
                    fix="Look at `core-mri data ls` for role = 'label'.",
                )
        self._names = _label_names(self.cases)
        self._values = _label_values(registry, self.cases)

    def places(self) -> Iterator[tuple[VolumeRow, Path]]:
        """Each volume with its path below the output folder."""
        for case in self.cases:
            image, label = self._paths(case)
            yield case.image, image
            if case.label is not None:
                yield case.label, label

    def files(self) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        """Each file, and what writes it."""
        for row, path in self.places():
            yield path, functools.partial(self._write, row)

    def describe(self) -> Iterator[tuple[Path, str]]:
        """The files that make a data set of the images."""
        if self._layout == "nnunet":
            yield Path("dataset.json"), _json(self._nnunet())
            if folds := self._folds():
                yield Path("splits_final.json"), _json(folds)
        else:
            yield Path("datalist.json"), _json(self._datalist())

    def _write(self, row: VolumeRow, path: Path) -> None:
        """Write a volume as NIfTI in RAS+; nnU-Net gets labels numbered without gaps."""
        volume = self._registry.read(row)
        if row.role == "label" and self._layout == "nnunet":
            numbered = np.searchsorted(self._values, volume.array)
            volume = volume.with_array(numbered.astype(np.min_scalar_type(len(self._values))))
        write_nifti(volume.reorient("RAS"), path)

    def _paths(self, case: Case) -> tuple[Path, Path]:
        name = f"{case.name}.nii.gz"
        if self._layout == "monai":
            return Path("images") / name, Path("labels") / name
        part = "Ts" if case.image.split == "test" else "Tr"
        return Path(f"images{part}") / f"{case.name}_0000.nii.gz", Path(f"labels{part}") / name

    def _nnunet(self) -> dict[str, Any]:
        labels = {self._names.get(v, f"value {v}"): i for i, v in enumerate(self._values)}
        return {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{n: i for n, i in labels.items() if i}},
            "numTraining": sum(case.image.split != "test" for case in self.cases),
            "file_ending": ".nii.gz",
            "licence": _licences(self.cases),
            "description": "Exported by core-mri. labelsTs is for you alone: nnU-Net ignores it.",
            "core_mri_label_values": {str(i): int(v) for i, v in enumerate(self._values)},
        }

    def _folds(self) -> list[dict[str, list[str]]]:
        """Up to five folds of the patients that are not for testing, by a hash of their ids."""
        names: dict[str, list[str]] = {}
        for case in self.cases:
            if case.image.split != "test":
                names.setdefault(case.image.subject_id, []).append(case.name)
        subjects = sorted(names, key=lambda s: hashlib.sha256(s.encode()).digest())
        num_folds = min(_MAX_FOLDS, len(subjects))
        if num_folds < 2:
            return []
        return [
            {
                "train": [
                    n for i, s in enumerate(subjects) if i % num_folds != k for n in names[s]
                ],
                "val": [n for i, s in enumerate(subjects) if i % num_folds == k for n in names[s]],
            }
            for k in range(num_folds)
        ]

    def _datalist(self) -> dict[str, Any]:
        parts: dict[str, list[dict[str, str]]] = {"train": [], "val": [], "test": []}
        for case in self.cases:
            image, label = self._paths(case)
            entry = {"image": f"./{image.as_posix()}"}
            if case.label is not None:
                entry["label"] = f"./{label.as_posix()}"
            parts[case.image.split].append(entry)
        names = {str(v): self._names.get(v, f"value {v}") for v in self._values.tolist() if v}
        return {
            "name": "core-mri export",
            "description": "Parts are those of the registry, by patient.",
            "licence": _licences(self.cases),
            "modality": {"0": "MRI"},
            "labels": {"0": "background", **names},
            "numTraining": len(parts["train"]),
            "numTest": len(parts["test"]),
            "training": parts["train"],
            "validation": parts["val"],
            "test": parts["test"],
        }


def _pair(registry: Registry, rows: list[VolumeRow]) -> Iterator[Case]:
    selected = {row.volume_id for row in rows}
    for row in rows:
        if row.role != "image":
            continue
        labels = [label for label in registry.labels_of(row) if label.volume_id in selected]
        if len(labels) > 1:
            raise ConfigError(
                "CONFIG-05",
                f"image {row.volume_id} has {len(labels)} label maps: "
                f"{', '.join(label.volume_id for label in labels)}.",
                fix="Narrow --where, or take a cohort, so that each image has one.",
            )
        yield Case(row, labels[0] if labels else None)


def _label_names(cases: list[Case]) -> dict[int, str]:
    """Value -> structure, where the sources tell."""
    names: dict[int, str] = {}
    for case in cases:
        if case.label is None:
            continue
        told = str(json.loads(case.label.facts).get("LabelNames", ""))
        for value, _, name in (part.partition("=") for part in told.split(";") if part):
            if names.setdefault(int(value), name) != name:
                raise ConfigError(
                    "CONFIG-05",
                    f"label {value} means {names[int(value)]!r} in one source and {name!r} in "
                    "another.",
                    fix="Narrow --where to one of them.",
                )
    return names


def _label_values(registry: Registry, cases: list[Case]) -> np.ndarray:
    """All values of all label maps, ascending, 0 among them."""
    found = {0}
    for case in cases:
        if case.label is not None:
            found.update(np.unique(registry.read(case.label).array).tolist())
    return np.array(sorted(found))


def _licences(cases: list[Case]) -> str:
    volumes = [row for case in cases for row in (case.image, case.label) if row is not None]
    return mixture(row.licence for row in volumes)


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
