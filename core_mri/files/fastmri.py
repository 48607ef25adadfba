"""fastMRI's HDF5: knee and brain, single- and multi-coil, prostate T2; in and out.

`kspace` is complex64 (slices, coils, readout, phase), (slices, readout, phase) for single-coil
files, and (averages, slices, coils, readout, phase) for prostate T2, whose averages hold
interleaved lines (NYU, cai2r/fastMRI_prostate, `fastmri_prostate/data/mri_data.py`). Layout of the
rest: facebookresearch/fastMRI, `fastmri/data/mri_data.py`.

Not Cartesian, so recognized and refused: prostate diffusion (echo-planar, needs regridding and
phase correction) and breast (golden-angle radial, real and imaginary parts on their own axis).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.files.hdf5 import damage_of
from core_mri.files.kspace import KSpace, KSpaceHeader
from core_mri.files.mrd_header import build_xml, parse_xml
from core_mri.volume import FactValue

if TYPE_CHECKING:
    import h5py

ACQUISITIONS = frozenset(
    {
        "CORPD_FBK", "CORPDFS_FBK", "AXT1", "AXT1PRE", "AXT1POST", "AXT2", "AXFLAIR", "AXT2TSE",
        "T2", "DIFFUSION",
    }
)  # fmt: skip
"""Names of contrasts that are kept; any other text could be anything."""
_TARGETS = ("reconstruction_rss", "reconstruction_esc")


def open_fastmri(path: Path, file: h5py.File) -> KSpace:
    """The scan of an open and checked file.

    Raises:
        DataError: DATA-02 damaged, DATA-03 samples that are not complex, DATA-14 for another number
            of axes, sampling that is not Cartesian, or a header whose matrix is another.
    """
    import h5py

    stored = file["kspace"]
    if not isinstance(stored, h5py.Dataset):
        raise DataError("DATA-03", f"{path}: `kspace` is a group, not samples.")
    if stored.ndim == 5 and stored.dtype.kind == "f" and 2 in (stored.shape[0], stored.shape[-1]):
        raise DataError(
            "DATA-14", f"{path}: golden-angle radial samples (fastMRI breast), not Cartesian."
        )
    if stored.dtype.kind != "c":
        raise DataError("DATA-03", f"{path}: `kspace` holds {stored.dtype}, not complex samples.")
    if {"phase_correction", "coil_sens_maps"} & set(file):
        raise DataError(
            "DATA-14",
            f"{path}: echo-planar samples (fastMRI prostate diffusion), which need regridding and "
            "phase correction first.",
        )
    if stored.ndim not in (3, 4, 5) or 0 in stored.shape:
        raise DataError("DATA-14", f"{path}: `kspace` of shape {stored.shape}.")
    single = stored.ndim == 3
    shape: tuple[int, ...] = stored.shape
    num_slices = shape[0] if single else shape[-4]
    coils = 1 if single else shape[-3]
    readout, phase = shape[-2:]
    with damage_of(path):
        header = _header(path, file, readout, phase)
        mask = _mask(path, file, phase)
    targets = [
        name
        for name in _TARGETS
        if name in file and file[name].ndim == 3 and len(file[name]) == num_slices
    ]

    def read_slice(index: int) -> npt.NDArray[np.complex64]:
        with damage_of(path):
            if stored.ndim == 5:
                return _averaged([stored[k, index] for k in range(stored.shape[0])])
            samples = stored[index]
        return np.asarray(samples[None] if single else samples, dtype=np.complex64)

    def target(index: int) -> npt.NDArray[np.float32]:
        with damage_of(path):
            return np.asarray(file[targets[0]][index], dtype=np.float32)

    return KSpace.from_slices(
        header=header,
        shape=(num_slices, coils, readout, phase),
        read_slice=read_slice,
        mask=mask,
        target=target if targets else None,
        target_name=targets[0] if targets else "",
        path=path,
        layout="fastmri",
        close=file.close,
    )


def write_fastmri(kspace: KSpace, path: Path) -> None:
    """Write fastMRI's layout; see `core_mri.files.kspace.write_kspace`.

    Raises:
        ConfigError: CONFIG-05 for several volumes.
        DataError: DATA-07 when it cannot be written.
    """
    import h5py

    if kspace.num_volumes > 1:
        raise ConfigError(
            "CONFIG-05",
            f"{path}: fastMRI's layout holds one volume, this scan has {kspace.num_volumes}.",
            fix="Write ismrmrd, or one volume at a time.",
        )
    num_slices, coils, readout, phase = kspace.shape
    single = kspace.single_coil and kspace.target_name != "reconstruction_rss"
    shape = (num_slices, readout, phase) if single else kspace.shape
    header, mask, first = kspace.header, kspace.mask(), kspace.target(0)
    attributes: dict[str, Any] = {
        "acquisition": header.acquisition,
        "max": header.target_max,
        "norm": header.target_norm,
        "num_low_frequency": header.num_low_frequencies,
        "acceleration": header.acceleration if header.acceleration > 1 else None,
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            stored = file.create_dataset("kspace", shape, np.complex64)
            target = None
            if first is not None:
                target = file.create_dataset(
                    kspace.target_name, (num_slices, *first.shape), np.float32
                )
            for index in range(num_slices):
                samples = kspace.read_slice(index)
                stored[index] = samples[0] if single else samples
                if target is not None:
                    target[index] = kspace.target(index)
            file["ismrmrd_header"] = build_xml(header, coils, num_slices, 1)
            if mask is not None and mask.ndim == 1 and not mask.all():
                file["mask"] = mask
            file.attrs.update({k: v for k, v in attributes.items() if v not in (None, "")})
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError("DATA-07", f"{path}: cannot be written ({error.strerror}).") from error


def _averaged(samples: list[npt.NDArray[np.complex64]]) -> npt.NDArray[np.complex64]:
    """The mean of the averages that hold each sample; they interleave their lines."""
    counts = sum((s != 0).any(axis=(0, 1)).astype(np.float32) for s in samples)
    total = np.sum(samples, axis=0, dtype=np.complex64)
    return np.asarray(total / np.maximum(counts, 1), dtype=np.complex64)


def _header(path: Path, file: h5py.File, readout: int, phase: int) -> KSpaceHeader:
    """From the XML where there is one, else from the array alone."""
    facts: dict[str, FactValue] = {"Modality": "MR"}
    sizes: dict[str, Any] = {
        "encoded_matrix": (readout, phase, 1),
        "recon_matrix": (readout, phase, 1),
        "phase_center": phase // 2,
        "phase_count": phase,
    }
    if "ismrmrd_header" in file:
        raw = file["ismrmrd_header"][()]
        xml = parse_xml(path, raw if isinstance(raw, (bytes, str)) else bytes(raw))
        facts = xml.facts
        # The array may be padded or cut along phase; along the readout it must be as encoded.
        if xml.encoded_matrix[0] != readout:
            raise DataError(
                "DATA-14",
                f"{path}: the header says {xml.encoded_matrix[0]} samples a readout, the array has "
                f"{readout}.",
            )
        if xml.trajectory != "cartesian":
            raise DataError("DATA-14", f"{path}: sampling that is not Cartesian.")
        sizes = {
            "encoded_matrix": xml.encoded_matrix,
            "recon_matrix": xml.recon_matrix,
            "encoded_fov_mm": xml.encoded_fov_mm,
            "recon_fov_mm": xml.recon_fov_mm,
            "phase_center": xml.phase_center,
            "phase_count": xml.phase_count,
            "acceleration": xml.acceleration,
        }
    acquisition = _text(file.attrs.get("acquisition"))
    if acquisition:
        facts.setdefault("SeriesDescription", acquisition.replace("_", " "))
    if patient := _text(file.attrs.get("patient_id")):
        facts["PatientID"] = patient
    if (acceleration := _number(file.attrs.get("acceleration"))) is not None:
        sizes["acceleration"] = acceleration
    low = _number(file.attrs.get("num_low_frequency"))
    return KSpaceHeader(
        **sizes,
        acquisition=acquisition if acquisition in ACQUISITIONS else "",
        target_max=_number(file.attrs.get("max")),
        target_norm=_number(file.attrs.get("norm")),
        num_low_frequencies=None if low is None else int(low),
        facts=facts,
    )


def _mask(path: Path, file: h5py.File, phase: int) -> npt.NDArray[np.bool_] | None:
    if "mask" not in file:
        return None
    mask = np.asarray(file["mask"][()]).reshape(-1) > 0
    if mask.shape != (phase,):
        raise DataError(
            "DATA-14", f"{path}: a mask of {mask.size} lines for {phase} lines of k-space."
        )
    return mask


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _number(value: object) -> float | None:
    try:
        number = float(np.asarray(value).reshape(())[()]) if value is not None else float("nan")
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
