"""Raw data in HDF5, ISMRMRD and fastMRI: written anew, the samples as they are, nothing else along.

A file is never edited in place, since HDF5 keeps what was deleted in freed space.

* ISMRMRD: `xml` rebuilt (`mrd_xml`) and `data`. Of each readout, time stamps count from the first
  one of the file; measurement number and user fields are zero. Waveforms, images, other groups,
  attributes and user blocks are not written.
* fastMRI: `kspace`, targets, mask, header rebuilt; attributes `max`, `norm`, `acceleration`,
  `num_low_frequency` and known names of contrasts; `patient_id` keyed.

Raw data of a head shows the face once it is reconstructed: `faces` decides about that, not this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import DataError
from core_mri.files.fastmri import ACQUISITIONS
from core_mri.files.hdf5 import damage_of, open_hdf5
from core_mri.files.ismrmrd_read import find_dataset
from data_registry.deidentify.identifiers import file_id
from data_registry.deidentify.mrd_xml import CleanXml, rebuild_xml
from data_registry.deidentify.outcome import Result
from data_registry.deidentify.verify import Finding, find_text

if TYPE_CHECKING:
    import h5py

_TARGETS = ("reconstruction_rss", "reconstruction_esc")
_NUMBERS = ("max", "norm", "acceleration", "num_low_frequency")
_ROWS = 256
_CHUNK = 1 << 24
_ZEROED = ("measurement_uid", "user_int", "user_float")


def deidentify_raw_data(path: Path, out: Path | None, key: bytes) -> tuple[str, str, Result]:
    """Write the clean form of an ISMRMRD or fastMRI file.

    Args:
        path: HDF5 file.
        out: Where to; None to write nothing.
        key: Project key.

    Returns:
        ``fastmri`` or ``ismrmrd``, the path below the output folder, and the rest.

    Raises:
        DataError: As `open_hdf5`; DATA-03 for another layout, DATA-07 when it cannot be written.
    """
    with open_hdf5(path) as file:
        group = find_dataset(file)
        if group is None and "kspace" not in file:
            raise DataError("DATA-03", "HDF5 of a layout that is neither ISMRMRD nor fastMRI.")
        with damage_of(Path("the file")):
            clean = _headers(file, group, key, path)
        kind = "fastmri" if group is None else "ismrmrd"
        name = clean.subject.name
        if out is None:
            findings = find_text(clean.xml, "header", names=clean.identifying)
        else:
            _write(file, group, clean, out)
            findings = _verify(out, clean)
    result = Result(
        findings,
        {"K": clean.kept, "X": clean.dropped},
        tuple(clean.removed),
        (clean.patient_id, name),
    )
    return kind, f"{name}/{file_id(key, path.resolve())}.h5", result


def _headers(file: h5py.File, group: h5py.Group | None, key: bytes, path: Path) -> CleanXml:
    stored: Any = None
    patient = ""
    if group is not None:
        stored = group["xml"][()]
        stored = stored[0] if isinstance(stored, np.ndarray) else stored
    else:
        stored = file["ismrmrd_header"][()] if "ismrmrd_header" in file else None
        value = file.attrs.get("patient_id", "")
        patient = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if stored is None:
        stored = b"<ismrmrdHeader/>"
    xml = stored if isinstance(stored, bytes) else str(stored).encode()
    return rebuild_xml(xml, key, patient, f"file:{file_id(key, path.resolve())}")


def _write(file: h5py.File, group: h5py.Group | None, clean: CleanXml, out: Path) -> None:
    import h5py

    try:
        with h5py.File(out, "w") as target:
            if group is not None:
                _write_ismrmrd(group, clean, target)
            else:
                _write_fastmri(file, clean, target)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise DataError(
            "DATA-07", f"cannot write to the output folder: {error.strerror or error}."
        ) from None


def _write_fastmri(file: h5py.File, clean: CleanXml, target: h5py.File) -> None:
    for dataset in ("kspace", "mask", *_TARGETS):
        if dataset in file and file[dataset].dtype.kind in "fciub":
            _copy(file[dataset], target, dataset)
    if "ismrmrd_header" in file:
        target["ismrmrd_header"] = clean.xml.decode()
    for attribute in _NUMBERS:
        value = np.asarray(file.attrs.get(attribute, np.nan))
        if value.shape in ((), (1,)) and value.dtype.kind in "fiu" and np.isfinite(value).all():
            target.attrs[attribute] = file.attrs[attribute]
    acquisition = file.attrs.get("acquisition", "")
    text = acquisition.decode() if isinstance(acquisition, bytes) else str(acquisition)
    if text in ACQUISITIONS:
        target.attrs["acquisition"] = text
    target.attrs["patient_id"] = clean.subject.name


def _copy(source: h5py.Dataset, target: h5py.File, name: str) -> None:
    """Slice by slice, so that memory stays flat."""
    copy = target.create_dataset(name, source.shape, source.dtype)
    if source.ndim < 2:
        copy[...] = source[...]
        return
    for index in range(source.shape[0]):
        with damage_of(Path("the file")):
            part = source[index]
        copy[index] = part


def _write_ismrmrd(group: h5py.Group, clean: CleanXml, target: h5py.File) -> None:
    import h5py
    from ismrmrd import hdf5

    inside = target.create_group("dataset")
    xml = inside.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))
    xml[0] = clean.xml
    table = group["data"]
    if table.dtype.names is None or not {"head", "data"} <= set(table.dtype.names):
        raise DataError("DATA-03", "ISMRMRD data that are no readouts.")
    copy = inside.create_dataset(
        "data", (0,), hdf5.acquisition_dtype, maxshape=(None,), chunks=True
    )
    first: int | None = None
    for rows in _rows(table, hdf5.acquisition_dtype):
        head = rows["head"]
        stamps = head["acquisition_time_stamp"].astype(np.int64)
        if first is None and stamps.any():
            first = int(stamps[stamps > 0].min())
        head["acquisition_time_stamp"] = np.where(
            stamps > 0, np.maximum(stamps - (first or 0), 0), 0
        )
        for name in _ZEROED:
            head[name] = 0
        copy.resize(len(copy) + len(rows), axis=0)
        copy[-len(rows) :] = rows


def _rows(table: h5py.Dataset, dtype: np.dtype[Any]) -> Iterator[Any]:
    """Readouts in the layout of the installed library: fields it does not know are not taken."""
    for start in range(0, len(table), _ROWS):
        with damage_of(Path("the file")):
            stored = table[start : start + _ROWS]
        rows = np.zeros(len(stored), dtype=dtype)
        for name in dtype.names or ():
            if name in (stored.dtype.names or ()):
                rows[name] = stored[name]
            elif dtype[name].kind == "O":
                for row in range(len(rows)):
                    rows[name][row] = np.zeros(0, np.float32)
        yield rows


def _verify(out: Path, clean: CleanXml) -> list[Finding]:
    """Texts of the new file word by word, and all its bytes for every identifying text."""
    findings = find_text(clean.xml, "header", names=clean.identifying)
    wanted = {text.encode() for text in clean.identifying if len(text) > 5}
    wanted |= {text.decode().encode("utf-16-le") for text in wanted}
    tail = b""
    with out.open("rb") as stream:
        while part := stream.read(_CHUNK):
            window = tail + part
            findings += [Finding("file", "text") for text in wanted if text in window]
            tail = window[-512:]
    return sorted(set(findings))
