"""Folders that look like downloaded data sets: literal paths, tiny files of the real formats."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np

from core_mri.volume import Volume
from tests.data_registry.test_raw_data import save_raw

SHAPE = (20, 18, 5)
AFFINE = np.diag([1.5, 1.25, 4.0, 1.0])


def make_folder(root: Path, files: dict[str, str]) -> None:
    """Write each file of a layout.

    Args:
        root: Folder to fill.
        files: Path below it -> kind of file and its words. A ``*`` in the name of a DICOM file
            stands for the number of each slice.
    """
    for name, what in files.items():
        kind, *words = what.split()
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[kind](path, _rng(name), words)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def _picture(rng: np.random.Generator) -> np.ndarray:
    """A body with two organs, no two alike."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = (i / rng.uniform(0.7, 0.9)) ** 2 + (j / rng.uniform(0.7, 0.9)) ** 2 < 1
    organs = sum(
        rng.uniform(100, 300) * ((i - a) ** 2 + (j - b) ** 2 + (k / 2) ** 2 < 0.1)
        for a, b in rng.uniform(-0.4, 0.4, (2, 2))
    )
    return np.asarray(body * (200 + 50 * i + organs) + rng.uniform(0, 5, SHAPE), dtype=np.int16)


def _mask(rng: np.random.Generator, values: list[str]) -> np.ndarray:
    """A stripe of each value, somewhere."""
    mask = np.zeros(SHAPE, dtype=np.int16)
    for row, value in enumerate(values):
        mask[2 + row % 14, : rng.integers(4, 12), row % SHAPE[2]] = int(value)
        mask[2 + row % 14, : rng.integers(1, 4), (row + 1) % SHAPE[2]] = int(value)
    return mask


def _save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".nrrd":
        from core_mri import write_volume

        write_volume(Volume(array, AFFINE, kind="label"), path)
        return
    if path.suffix in (".mha", ".mhd"):
        import SimpleITK

        image = SimpleITK.GetImageFromArray(array.T)
        image.SetSpacing([1.5, 1.25, 4.0])
        SimpleITK.WriteImage(image, str(path))
        return
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def _nifti(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    _save(path, _picture(rng))


def _nifti4d(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    _save(path, np.stack([_picture(rng) for _ in range(int(words[0]))], axis=-1))


def _label(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    _save(path, _mask(rng, words))


def _analyze(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    nibabel.save(nibabel.AnalyzeImage(_picture(rng), AFFINE), path.with_suffix(".img"))


def _dicom(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    from core_mri.files.dicom_write import write_dicom_series

    facts = {"Modality": "MR", "PatientID": words[0], "SeriesDescription": "t2_tse"}
    volume = Volume(_picture(rng), AFFINE)
    aside = path.parent / "aside"
    for number, file in enumerate(
        write_dicom_series(volume, aside, facts=facts, seed=str(path)), start=1
    ):
        file.rename(path.with_name(path.name.replace("*", f"{number:03d}")))
    shutil.rmtree(aside)


def _seg(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    """A DICOM segmentation of the series in a folder beside its own: a segment a name."""
    from core_mri.files.segmentation import write_segmentation

    series, *names = words
    values = [str(number) for number in range(1, len(names) + 1)]
    mask = Volume(_mask(rng, values), AFFINE, kind="label")
    labels = dict(enumerate(names, start=1))
    write_segmentation(mask, path, path.parent.parent / series, labels=labels)


def _fastmri(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    coils, patient = words
    shape = (2, int(coils), 48, 40) if int(coils) > 1 else (2, 48, 40)
    parts = rng.standard_normal((*shape, 2)).astype(np.float32)
    save_raw(path, parts.view(np.complex64)[..., 0])
    with h5py.File(path, "a") as file:
        file.attrs["patient_id"] = patient


def _hdf5(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    names, dtype, *shape = words
    with h5py.File(path, "w") as file:
        for name in names.split(","):
            file[name] = rng.standard_normal([int(n) for n in shape]).astype(dtype)


def _npy(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    np.save(path, _picture(rng).T.astype(np.uint8))


def _text(path: Path, rng: np.random.Generator, words: list[str]) -> None:
    path.write_text("no scan\n")


_WRITERS = {
    "nifti": _nifti, "nifti4d": _nifti4d, "label": _label, "analyze": _analyze, "dicom": _dicom,
    "seg": _seg, "fastmri": _fastmri, "hdf5": _hdf5, "npy": _npy, "text": _text,
}  # fmt: skip
