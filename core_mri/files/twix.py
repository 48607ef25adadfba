"""Siemens raw data (``.dat``, "twix") through twixtools: Cartesian, 2-D multi-slice.

twixtools reads the blocks, they are sorted here. Not done, and left to `siemens_to_ismrmrd`, whose
output `core_mri.files` reads: 3-D encoding, noise whitening, ramp-sampling regridding, phase
correction and the position in the patient. Checked with files that twixtools wrote; no scanner's
own file was at hand.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, CoreMRIError, DataError
from core_mri.volume import FactValue

if TYPE_CHECKING:
    from core_mri.files.kspace import KSpace

_CONVERTER = "Convert it with siemens_to_ismrmrd and read the ISMRMRD file."
_SKIPPED = (
    "NOISEADJSCAN", "PHASCOR", "RTFEEDBACK", "HPFEEDBACK", "PHASESTABSCAN", "REFPHASESTABSCAN",
    "noname60", "SYNCDATA", "ACQEND",
)  # fmt: skip
_MAX_BLOCKS = 50_000_000
_VE_HEADER_BYTES = 192


@dataclass(frozen=True)
class _Line:
    """One readout: where it belongs and the block that holds it."""

    volume: tuple[int, ...]
    slice: int
    phase: int
    center: int
    block: Any


def read_twix(path: Path) -> KSpace:
    """Open the last measurement of a ``.dat`` file (those before it are adjustments).

    Averages and segments are averaged, reflected readouts reversed, asymmetric echoes placed by
    their center, twofold readout oversampling removed. Repetitions, echoes, phases and sets become
    volumes. Slices are in the order of their positions.

    Raises:
        ConfigError: CONFIG-06 when twixtools is not installed.
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-14 for 3-D encoding,
            ramp sampling or a header without matrix sizes.
    """
    try:
        import twixtools  # noqa: F401
    except ImportError:
        raise ConfigError(
            "CONFIG-06",
            f"{path}: Siemens raw data needs twixtools, which is not installed.",
            fix=f'Install it with pip install "core-mri[twix]". Or: {_CONVERTER}',
        ) from None
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    try:
        # twixtools prints what it finds odd; it is judged here instead.
        with contextlib.redirect_stdout(io.StringIO()):
            return _open(path, file)
    except CoreMRIError:
        file.close()
        raise
    except Exception as error:
        # twixtools raises nearly any exception on damaged bytes.
        file.close()
        raise DataError("DATA-02", f"{path}: damaged ({type(error).__name__}).") from None


def _open(path: Path, file: BinaryIO) -> KSpace:
    from twixtools import hdr_def, helpers, twixprot

    from core_mri.files.kspace import KSpace, KSpaceHeader

    size = path.stat().st_size
    if size < hdr_def.MultiRaidFileHeader.itemsize:
        raise DataError("DATA-02", f"{path}: too short for Siemens raw data.")
    is_ve, count = helpers.idea_version_check(file)
    start = 0
    if is_ve:
        file.seek(0)
        raid = np.frombuffer(file.read(hdr_def.MultiRaidFileHeader.itemsize),
                             hdr_def.MultiRaidFileHeader)[0]  # fmt: skip
        if not 1 <= count <= hdr_def.max_raidfile_entries:
            raise DataError("DATA-03", f"{path}: not Siemens raw data.")
        start = int(raid["entry"][int(count) - 1]["off_"])
    file.seek(start)
    header_bytes = int(np.frombuffer(file.read(4), "<u4")[0])
    if not 8 <= header_bytes <= size - start:
        raise DataError("DATA-03", f"{path}: not Siemens raw data.")
    file.seek(start)
    protocol = twixprot.parse_twix_hdr(file)
    yaps = protocol.get("MeasYaps", protocol.get("Phoenix", {}))
    space = yaps.get("sKSpace", {})
    try:
        base, lines = int(space["lBaseResolution"]), int(space["lPhaseEncodingLines"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            "DATA-14", f"{path}: its header states no matrix size.", fix=_CONVERTER
        ) from None
    regrid = protocol.get("Meas", {}).get("alRegridMode", [1])
    if regrid and regrid[0] > 1:
        raise DataError("DATA-14", f"{path}: samples on gradient ramps.", fix=_CONVERTER)
    found = _lines(path, file, start + header_bytes, size, bool(is_ve))
    order = _slice_order(found)
    volumes = sorted({line.volume for line in found})
    blocks: dict[tuple[int, int], list[_Line]] = defaultdict(list)
    for line in found:
        blocks[volumes.index(line.volume), order.index(line.slice)].append(line)
    num_coils = found[0].block.mdh.UsedChannels
    samples = max(
        2 * max(line.center, line.block.mdh.SamplesInScan - line.center) for line in found
    )
    lines = max(lines, max(2 * abs(line.phase) for line in found))
    oversampled = samples > base
    readout = base if oversampled else samples

    def read_slice(index: int, volume: int = 0) -> npt.NDArray[np.complex64]:
        # A function of the caller's process: the blocks keep the file open.
        return _sorted(blocks[volume, index], (num_coils, samples, lines), readout)

    def mask(volume: int = 0) -> npt.NDArray[np.bool_]:
        on = np.zeros(lines, dtype=bool)
        for (number, _), members in blocks.items():
            if number == volume:
                on[[line.phase + lines // 2 for line in members]] = True
        return on

    fov = _field_of_view(yaps)
    header = KSpaceHeader(
        encoded_matrix=(readout, lines, 1),
        recon_matrix=(base, base, 1),
        encoded_fov_mm=fov,
        recon_fov_mm=fov,
        phase_center=lines // 2,
        phase_count=lines,
        trajectory="cartesian",
        affine=None,
        facts=_facts(protocol, yaps),
    )
    return KSpace.from_slices(
        path=path,
        layout="twix",
        header=header,
        shape=(len(order), num_coils, readout, lines),
        num_volumes=len(volumes),
        read_slice=read_slice,
        mask=mask,
        close=file.close,
    )


def _lines(path: Path, file: BinaryIO, start: int, size: int, is_ve: bool) -> list[_Line]:
    """Every readout of the image, without reading its samples."""
    from twixtools.mdb import Mdb

    found: list[_Line] = []
    position = start
    for _ in range(_MAX_BLOCKS):
        if position + _VE_HEADER_BYTES > size:
            raise DataError("DATA-02", f"{path}: truncated, its end mark is missing.")
        file.seek(position)
        block = Mdb(file, is_ve)
        if block.is_flag_set("ACQEND"):
            break
        length = int(block.dma_len)
        if length < 128 or position + length > size:
            raise DataError("DATA-02", f"{path}: a block leads beyond the end of the file.")
        position += length
        if any(block.is_flag_set(flag) for flag in _SKIPPED):
            continue
        counter = block.mdh.Counter
        if counter.Par:
            raise DataError("DATA-14", f"{path}: 3-D encoding is not read.", fix=_CONVERTER)
        found.append(
            _Line(
                volume=(counter.Set, counter.Eco, counter.Phs, counter.Rep),
                slice=counter.Sli,
                phase=counter.Lin - block.mdh.CenterLin,
                center=block.mdh.CenterCol,
                block=block,
            )
        )
    if not found:
        raise DataError("DATA-10", f"{path}: holds no readout of an image.")
    if len({line.block.mdh.UsedChannels for line in found}) > 1:
        raise DataError("DATA-14", f"{path}: the number of coils changes.", fix=_CONVERTER)
    return found


def _slice_order(lines: list[_Line]) -> list[int]:
    """Slice counters, which follow time, in the order of positions along the stack."""
    places: dict[int, tuple[float, float, float]] = {}
    for line in lines:
        position = line.block.mdh.SliceData.SlicePos
        places.setdefault(line.slice, (position.Sag, position.Cor, position.Tra))
    points = np.array(list(places.values()))
    spread = points - points.mean(axis=0)
    main = np.linalg.svd(spread)[2][0]
    main = main * np.sign(main[np.argmax(np.abs(main))])
    depth = dict(zip(places, spread @ main, strict=True))
    return sorted(depth, key=lambda number: (round(float(depth[number]), 3), number))


def _sorted(
    lines: list[_Line], shape: tuple[int, int, int], readout: int
) -> npt.NDArray[np.complex64]:
    """One slice ``(coils, readout, phase)``, averages averaged, oversampling removed."""
    _, samples, num_lines = shape
    grid = np.zeros(shape, dtype=np.complex64)
    counts = np.zeros(num_lines)
    for line in lines:
        data = line.block.data
        if line.block.is_flag_set("REFLECT"):
            data = data[:, ::-1]
        # A partial echo is short before its center: the center goes to the middle.
        first = samples // 2 - line.center
        column = line.phase + num_lines // 2
        grid[:, first : first + data.shape[1], column] += data
        counts[column] += 1
    grid /= np.maximum(counts, 1).astype(np.float32)
    if readout == samples:
        return grid
    image = np.fft.fftshift(
        np.fft.ifft(np.fft.ifftshift(grid, axes=1), axis=1, norm="ortho"), axes=1
    )
    first = (samples - readout) // 2
    cropped = image[:, first : first + readout]
    back = np.fft.fftshift(
        np.fft.fft(np.fft.ifftshift(cropped, axes=1), axis=1, norm="ortho"), axes=1
    )
    return back.astype(np.complex64)


def _field_of_view(yaps: Mapping[str, Any]) -> tuple[float, float, float]:
    """Readout, phase and slice, mm; 0 where it is not stated."""
    slices = yaps.get("sSliceArray", {}).get("asSlice") or [{}]
    first = slices[0] if isinstance(slices[0], dict) else {}
    x, y, z = (
        float(first.get(name, 0) or 0) for name in ("dReadoutFOV", "dPhaseFOV", "dThickness")
    )
    return x, y, z


def _facts(protocol: Mapping[str, Any], yaps: Mapping[str, Any]) -> dict[str, FactValue]:
    facts: dict[str, FactValue] = {"Manufacturer": "SIEMENS", "Modality": "MR"}

    def first(name: str, scale: float) -> float | None:
        values = yaps.get(name)
        if isinstance(values, list) and values and isinstance(values[0], (int, float)):
            return float(values[0]) * scale
        return None

    # Times are microseconds in the protocol, milliseconds in DICOM.
    for keyword, name, scale in (
        ("EchoTime", "alTE", 1e-3), ("RepetitionTime", "alTR", 1e-3),
        ("InversionTime", "alTI", 1e-3), ("FlipAngle", "adFlipAngleDegree", 1.0),
    ):  # fmt: skip
        if (value := first(name, scale)) is not None:
            facts[keyword] = value
    dicom, config = protocol.get("Dicom", {}), protocol.get("Config", {})
    for keyword, source, name in (
        ("MagneticFieldStrength", dicom, "flMagneticFieldStrength"),
        ("ManufacturerModelName", dicom, "ManufacturersModelName"),
        ("ProtocolName", yaps, "tProtocolName"),
        ("BodyPartExamined", config, "BodyPartExamined"),
        ("PatientID", config, "PatientID"),
    ):
        value = source.get(name)
        if isinstance(value, (int, float, str)) and str(value):
            facts[keyword] = value
    return facts
