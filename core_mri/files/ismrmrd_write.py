"""A Cartesian `KSpace` to ISMRMRD HDF5, one readout a line, as the `ismrmrd` package reads it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.files.kspace import KSpace
from core_mri.files.mrd_header import build_xml

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_ismrmrd(kspace: KSpace, path: Path) -> None:
    """Write all volumes; see `core_mri.files.kspace.write_kspace`.

    Samples stay as they are: a user parameter tells our reader that the readout is already as it
    shall be. Lines are numbered from 0, with the center in the middle; those that the mask switches
    off are not written. Times of day are zero.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    import h5py
    from ismrmrd import hdf5

    num_slices, num_coils, _, _ = kspace.shape
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            group = file.create_group("dataset")
            text = h5py.special_dtype(vlen=bytes)
            xml = group.create_dataset("xml", (1,), text)
            xml[0] = build_xml(
                kspace.header, num_coils, num_slices, kspace.num_volumes, kspace.shape[3]
            ).encode()
            table = group.create_dataset(
                "data", (0,), hdf5.acquisition_dtype, maxshape=(None,), chunks=True
            )
            for volume in range(kspace.num_volumes):
                for index in range(num_slices):
                    rows = _readouts(kspace, index, volume, hdf5.acquisition_dtype)
                    rows["head"]["scan_counter"] = np.arange(len(rows)) + len(table)
                    table.resize(len(table) + len(rows), axis=0)
                    table[-len(rows) :] = rows
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError("DATA-07", f"{path}: cannot be written ({error.strerror}).") from error


def _readouts(kspace: KSpace, index: int, volume: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The table rows of one slice."""
    samples = kspace.read_slice(index, volume)
    num_coils, readout, _ = samples.shape
    lines = np.flatnonzero(_acquired(kspace, samples, volume))
    rows = np.zeros(len(lines), dtype=dtype)
    head = rows["head"]
    head["version"] = 1
    head["number_of_samples"] = readout
    head["available_channels"] = head["active_channels"] = num_coils
    head["center_sample"] = readout // 2
    head["idx"]["kspace_encode_step_1"] = lines
    head["idx"]["slice"] = index
    head["idx"]["repetition"] = volume
    for name, value in _geometry(kspace, index).items():
        head[name] = value
    for row, line in enumerate(lines):
        values = np.ascontiguousarray(samples[:, :, line]).view(np.float32).ravel()
        rows["data"][row] = values
        rows["traj"][row] = np.zeros(0, dtype=np.float32)
    return rows


def _acquired(
    kspace: KSpace, samples: npt.NDArray[np.complex64], volume: int
) -> npt.NDArray[np.bool_]:
    """Lines of the mask; without one, all but the zero padding that the header states."""
    mask = kspace.mask(volume)
    if mask is not None:
        return mask if mask.ndim == 1 else np.asarray(mask.any(axis=0))
    lines = np.arange(samples.shape[2])
    inside = (lines >= kspace.header.padding_left) & (lines < kspace.header.padding_right)
    return np.asarray(inside | (samples != 0).any(axis=(0, 1)))


def _geometry(kspace: KSpace, index: int) -> dict[str, npt.NDArray[np.float64]]:
    """Position of the center of a slice and directions, LPS; zeros where none is stated."""
    if kspace.header.affine is None:
        return {}
    lps = _RAS_TO_LPS @ np.array(kspace.header.affine).reshape(4, 4)
    _, _, readout, phase = kspace.shape
    read, along = lps[:3, 1], lps[:3, 2]
    normal = np.cross(read, along)
    normal = normal / np.linalg.norm(normal)
    # Slices are sorted along this normal when they are read again.
    normal = normal * (1 if normal @ lps[:3, 0] >= 0 else -1)
    return {
        "position": (lps @ (index, readout // 2, phase // 2, 1))[:3],
        "read_dir": read / np.linalg.norm(read),
        "phase_dir": along / np.linalg.norm(along),
        "slice_dir": normal,
    }
