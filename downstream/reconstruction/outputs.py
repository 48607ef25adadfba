"""Reconstructed slices to a file: fastMRI's HDF5, or any volume format with its geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError
from core_mri.files.kspace import KSpaceHeader
from core_mri.files.scans import write_volume
from core_mri.kspace_inference import image_volume
from core_mri.runs import writing
from downstream.reconstruction.config import ReconstructConfig

Image = npt.NDArray[np.float32]
DATASET, ERRORS = "reconstruction", "error_map"


def write_output(
    out: Path,
    images: Image,
    header: KSpaceHeader,
    shape: tuple[int, int, int, int],
    config: ReconstructConfig,
    errors: Image | None = None,
) -> None:
    """Write slices where and as the name says, and their estimated errors beside them.

    Args:
        out: ``.h5`` or ``.hdf5``: dataset `reconstruction` alone, as the fastMRI leaderboard reads
            it; else what `core_mri.write_volume` makes of the name.
        images: ``[slices, H, W]``.
        header: Of the raw data.
        shape: Slices, coils, readout, phase of the raw data, of which `images` are the middle.
        config: How it was made, for the description of the series.
        errors: Of the shape of `images`: dataset `error_map` of HDF5, else a volume F_error.

    Raises:
        ConfigError: CONFIG-03 for a DICOM folder that is not empty.
        DataError: DATA-07 when it cannot be written.
    """
    if out.suffix.lower() in (".h5", ".hdf5"):
        write_reconstruction(out, images, errors)
        return
    write_volume(image_volume(images, header, shape, config.source), out)
    if errors is not None:
        volume = image_volume(errors, header, shape, f"{config.source} error map")
        write_volume(volume, error_path(out))


def error_path(out: Path) -> Path:
    """``F_error`` beside F, with its endings; of a folder a folder."""
    name, dot, endings = out.name.partition(".")
    return out.with_name(f"{name}_error{dot}{endings}")


def check_output(config: ReconstructConfig) -> None:
    """Refuse, before any work, a DICOM folder that holds something.

    Raises:
        ConfigError: CONFIG-03.
    """
    for out in (config.out, *([error_path(config.out)] if config.error_map else [])):
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(
                "CONFIG-03",
                f"{out}: exists and is not an empty folder.",
                fix="Choose a new folder.",
            )


def write_reconstruction(path: Path, images: Image, errors: Image | None = None) -> None:
    """Dataset ``reconstruction`` ``[slices, H, W]`` float32, complete or not at all.

    With `errors` also ``error_map`` of the same shape.

    Raises:
        DataError: DATA-07.
    """
    import h5py

    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            file.create_dataset(DATASET, data=images, dtype=np.float32)
            if errors is not None:
                file.create_dataset(ERRORS, data=errors, dtype=np.float32)
        partial.replace(path)
