"""Reconstructed slices to a file: fastMRI's HDF5, or any volume format with its geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError
from core_mri.files.kspace import KSpaceHeader
from core_mri.files.scans import write_volume
from core_mri.runs import writing
from core_mri.volume import FactValue, Volume
from data_registry.raw_data import image_affine
from downstream.reconstruction.config import ReconstructConfig

Image = npt.NDArray[np.float32]
DATASET = "reconstruction"


def write_output(
    out: Path,
    images: Image,
    header: KSpaceHeader,
    shape: tuple[int, int, int, int],
    config: ReconstructConfig,
) -> None:
    """Write slices where and as the name says.

    Args:
        out: ``.h5`` or ``.hdf5``: dataset `reconstruction` alone, as the fastMRI leaderboard reads
            it; else what `core_mri.write_volume` makes of the name.
        images: ``[slices, H, W]``.
        header: Of the raw data.
        shape: Slices, coils, readout, phase of the raw data, of which `images` are the middle.
        config: How it was made, for the description of the series.

    Raises:
        ConfigError: CONFIG-03 for a DICOM folder that is not empty.
        DataError: DATA-07 when it cannot be written.
    """
    if out.suffix.lower() in (".h5", ".hdf5"):
        write_reconstruction(out, images)
    else:
        write_volume(as_volume(images, header, shape, config.source), out)


def check_output(out: Path) -> None:
    """Refuse, before any work, a DICOM folder that holds something.

    Raises:
        ConfigError: CONFIG-03.
    """
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            "CONFIG-03", f"{out}: exists and is not an empty folder.", fix="Choose a new folder."
        )


def write_reconstruction(path: Path, images: Image) -> None:
    """Dataset ``reconstruction`` ``[slices, H, W]`` float32, complete or not at all.

    Raises:
        DataError: DATA-07.
    """
    import h5py

    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            file.create_dataset(DATASET, data=images, dtype=np.float32)
        partial.replace(path)


def as_volume(
    images: Image, header: KSpaceHeader, shape: tuple[int, int, int, int], source: str
) -> Volume:
    """Columns, rows, slices with the geometry of the scan.

    True geometry where the raw data states it (ISMRMRD); else voxel sizes from the field of view,
    around the origin, and the fact ``assumed_geometry`` (fastMRI, ``.npy``). Rows run along the
    readout, columns along the phase encoding.

    Args:
        images: ``[slices, H, W]``, the middle of the encoded field of view.
        header: Of the raw data.
        shape: Slices, coils, readout, phase of the raw data.
        source: How it was made.
    """
    affine, stated = image_affine(header, shape)
    # `center_crop` keeps from (n - crop) // 2 on.
    first = [(n - crop) // 2 for n, crop in zip(shape[2:], images.shape[1:], strict=True)]
    affine = affine.copy()
    affine[:3, 3] += affine[:3, 1] * first[0] + affine[:3, 2] * first[1]
    facts: dict[str, FactValue] = {k: v for k, v in header.facts.items() if k != "ProtocolName"}
    protocol = str(header.facts.get("SeriesDescription") or header.facts.get("ProtocolName") or "")
    geometry = "" if stated else ", synthetic geometry"
    facts["SeriesDescription"] = f"{protocol} {source}{geometry}".strip()[:64]
    facts["ImageType"] = "DERIVED\\PRIMARY\\M"
    if not stated:
        facts["assumed_geometry"] = True
    return Volume(images.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], facts=facts)
