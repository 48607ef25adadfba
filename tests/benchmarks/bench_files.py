"""How fast scans of each format are read, beside the bare library that reads the format.

    python tests/benchmarks/bench_files.py

One volume of 320x320x40 uint16 (a synthetic phantom under noise), written in each format; raw data
of 8 slices, 8 coils, 320x320. Readers take turns in each round, page cache warm, one process. The
number is megabytes of voxels per CPU-second (median of the rounds); the ratio to the library in the
same run is what other machines can compare. The library reads voxels only; ours checks the file,
places it in the patient and keeps header facts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import core_mri
from core_mri.volume import Volume

SHAPE = (320, 320, 40)
RAW_SHAPE = (8, 8, 320, 320)
Reader = Callable[[], object]


def make_volume() -> Volume:
    """A smooth bright object with Rician noise."""
    rng = np.random.default_rng(0)
    x, y, _ = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]] / SHAPE[0] - 0.5
    signal = 900 * np.exp(-(((x / 0.28) ** 2 + (y / 0.34) ** 2) ** 4))
    noise = rng.normal(0, 18, (2, *SHAPE))
    array = np.hypot(signal + noise[0], noise[1]).astype(np.uint16)
    return Volume(array, np.diag([0.7, 0.7, 4.0, 1.0]), facts={"Modality": "MR"})


def image_readers(folder: Path) -> dict[str, tuple[Reader, Reader, str]]:
    """By format: ours, the library's, and the library's name."""
    import nibabel
    import SimpleITK as sitk  # noqa: N813
    from PIL import Image
    from pydicom import dcmread

    volume = make_volume()
    series = folder / "dicom"
    paths = {name: folder / f"a{name}" for name in (".nii", ".nii.gz", ".nrrd", ".mha")}
    for path in (series, *paths.values()):
        core_mri.write_volume(volume, path)
    np.save(folder / "a.npy", volume.array)
    (folder / "png").mkdir()
    for k in range(SHAPE[2]):
        Image.fromarray(volume.array[:, :, k].T).save(folder / "png" / f"{k:03d}.png")

    def bare_dicom() -> object:
        return [dcmread(path).pixel_array for path in sorted(series.iterdir())]

    def bare_pictures() -> object:
        return np.stack([np.asarray(Image.open(p)) for p in sorted((folder / "png").iterdir())])

    def bare_itk(path: Path) -> Reader:
        return lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))

    def bare_nifti(path: Path) -> Reader:
        return lambda: np.asanyarray(nibabel.load(path).dataobj)

    def ours(source: Path, **options: object) -> Reader:
        return lambda: core_mri.read_volume(source, **options)  # type: ignore[arg-type]

    declared = {"spacing_mm": (0.7, 0.7, 4.0)}
    return {
        "DICOM series": (ours(series), bare_dicom, "pydicom"),
        "NIfTI .nii": (ours(paths[".nii"]), bare_nifti(paths[".nii"]), "nibabel"),
        "NIfTI .nii.gz": (ours(paths[".nii.gz"]), bare_nifti(paths[".nii.gz"]), "nibabel"),
        "NRRD": (ours(paths[".nrrd"]), bare_itk(paths[".nrrd"]), "SimpleITK"),
        "MetaImage": (ours(paths[".mha"]), bare_itk(paths[".mha"]), "SimpleITK"),
        "PNG folder": (ours(folder / "png", **declared), bare_pictures, "Pillow"),
        ".npy": (ours(folder / "a.npy", **declared), lambda: np.load(folder / "a.npy"), "numpy"),
    }


def raw_readers(folder: Path) -> dict[str, tuple[Reader, Reader, str]]:
    """Raw data, all slices one by one."""
    import h5py
    import ismrmrd

    from core_mri.files.kspace import read_kspace, write_kspace

    rng = np.random.default_rng(0)
    samples = rng.standard_normal((*RAW_SHAPE, 2)).astype(np.float32).view(np.complex64)[..., 0]
    fastmri, mrd = folder / "fastmri.h5", folder / "mrd.h5"
    with h5py.File(folder / "plain.h5", "w") as file:
        file["kspace"] = samples
    with read_kspace(folder / "plain.h5") as kspace:
        write_kspace(kspace, fastmri, layout="fastmri")
        write_kspace(kspace, mrd, layout="ismrmrd")

    def ours(path: Path) -> Reader:
        def read() -> object:
            with read_kspace(path) as kspace:
                return [kspace.read_slice(index) for index in range(kspace.shape[0])]

        return read

    def bare_fastmri() -> object:
        with h5py.File(fastmri) as file:
            return [file["kspace"][index] for index in range(RAW_SHAPE[0])]

    def bare_ismrmrd() -> object:
        data = ismrmrd.Dataset(str(mrd), create_if_needed=False)
        readouts = [data.read_acquisition(i).data for i in range(data.number_of_acquisitions())]
        data.close()
        return readouts

    return {
        "fastMRI HDF5": (ours(fastmri), bare_fastmri, "h5py"),
        "ISMRMRD HDF5": (ours(mrd), bare_ismrmrd, "ismrmrd"),
    }


def compare(readers: dict[str, tuple[Reader, Reader, str]], megabytes: float, rounds: int) -> None:
    """Print one line a format."""
    for name, (ours, bare, library) in readers.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + 1):
            for place, read in enumerate((ours, bare)):
                start = time.process_time()
                read()
                if turn:  # the first round warms caches and imports
                    seconds[place].append(time.process_time() - start)
        mine, theirs = (statistics.median(s) for s in seconds)
        print(
            f"  {name:<16}{megabytes / mine:>12,.0f}{megabytes / theirs:>12,.0f}"
            f"{mine / theirs:>12.2f}  {library}"
        )


def main() -> None:
    """Run all formats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("megabytes of voxels per CPU-second, and CPU time over that of the library")
        print(f"  {'format':<16}{'core-mri':>12}{'library':>12}{'times':>12}")
        compare(image_readers(folder), np.prod(SHAPE) * 2 / 1e6, options.rounds)
        compare(raw_readers(folder), np.prod(RAW_SHAPE) * 8 / 1e6, options.rounds)


if __name__ == "__main__":
    main()
