"""ISMRMRD (MRD version 1) HDF5 to a Cartesian `KSpace`.

What is done, in this order: noise, navigator, phase-correction, dummy and feedback readouts are set
apart; reversed readouts are turned; samples are whitened by the noise scan; twofold readout
oversampling is removed; each readout goes to its line by the centers that the header states
(partial Fourier, asymmetric echo); lines measured more than once (averages, segments, calibration
on the grid) are averaged; 3-D encodings are inverse-transformed along the partitions, so that
slices come out.

Sources: Inati et al., ISMRM Raw data format, MRM 77 (2017), and its XML schema; noise: Kellman and
McVeigh, Image reconstruction in SNR units, MRM 54 (2005), Hansen and Kellman, Image reconstruction:
an overview for clinicians, JMRI 41 (2015).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.files.hdf5 import damage_of
from core_mri.files.kspace import KSpace, KSpaceHeader
from core_mri.files.mrd_header import MrdXml, parse_xml

if TYPE_CHECKING:
    import h5py

_NOISE, _REVERSE = 19, 22
_APART = (19, 23, 24, 26, 27, 28, 29, 30, 31)
"""Flags (1-based bits) of readouts that are no image: noise, navigation, phase correction,
feedback, dummy scans, surface coil correction, phase stabilization."""
_CHUNK = 256
VOLUME_COUNTERS = ("set", "contrast", "phase", "repetition")
"""Counters of a readout that number volumes, the first one slowest."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Samples = npt.NDArray[np.complex64]
Floats = npt.NDArray[np.float64]


def find_dataset(file: h5py.File) -> h5py.Group | None:
    """The group with `xml` and `data`; the one called ``dataset`` where there are several."""
    import h5py

    groups = [
        item
        for item in file.values()
        if isinstance(item, h5py.Group) and "xml" in item and "data" in item
    ]
    return next((g for g in groups if g.name == "/dataset"), groups[0] if groups else None)


def is_image(head: Any) -> bool:
    """Whether a readout is part of the image of the first encoding."""
    return int(head["encoding_space_ref"]) == 0 and not any(_has(head, flag) for flag in _APART)


@dataclass(frozen=True)
class _Plan:
    """Where every readout goes, and what is done to its samples."""

    path: Path
    """Name of the file, for messages."""
    data: Any
    """The HDF5 table of readouts."""
    heads: Any
    matrix: tuple[int, int, int]
    """Encoded x, y, z."""
    keep_x: int
    """Samples of a readout that stay; encoded x without removal of oversampling."""
    centers: tuple[int, int]
    """Phase line and partition of the center of k-space."""
    whitener: npt.NDArray[np.complex128] | None
    num_coils: int

    def readouts(self, numbers: npt.NDArray[np.int64]) -> Any:
        """(head, samples ``[coils, x]``) of some readouts, read in chunks."""
        for start in range(0, len(numbers), _CHUNK):
            part = numbers[start : start + _CHUNK]
            for number, values in zip(part, self.data.fields("data")[part], strict=True):
                yield self.heads[number], self._prepared(self.heads[number], values)

    def _prepared(self, head: Any, values: npt.NDArray[np.float32]) -> Samples:
        samples = _complex(self.path, head, values, self.num_coils)
        pre, post = int(head["discard_pre"]), int(head["discard_post"])
        center = int(head["center_sample"])
        samples = samples[:, pre : samples.shape[1] - post]
        center -= pre
        if _has(head, _REVERSE):
            samples = samples[:, ::-1]
            center = samples.shape[1] - 1 - center
        if self.whitener is not None:
            samples = (self.whitener @ samples).astype(np.complex64)
        line = np.zeros((self.num_coils, self.matrix[0]), dtype=np.complex64)
        first = self.matrix[0] // 2 - center
        if not (first >= 0 and first + samples.shape[1] <= self.matrix[0]):
            raise DataError("DATA-14", f"{self.path}: a readout longer than the matrix.")
        line[:, first : first + samples.shape[1]] = samples
        if self.keep_x < self.matrix[0]:
            start = self.matrix[0] // 2 - self.keep_x // 2
            line = _fft(_ifft(line, 1)[:, start : start + self.keep_x], 1)
        return line

    def places(self, numbers: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """Line and partition of readouts on the encoded grid."""
        idx = self.heads["idx"][numbers]
        phase = idx["kspace_encode_step_1"].astype(int) - self.centers[0] + self.matrix[1] // 2
        partition = idx["kspace_encode_step_2"].astype(int) - self.centers[1] + self.matrix[2] // 2
        return phase, partition


def open_ismrmrd(
    path: Path, file: h5py.File, group: h5py.Group, *, whiten: bool, remove_oversampling: bool
) -> KSpace:
    """The scan of an open and checked file; see `core_mri.files.kspace.read_kspace`.

    Whitened noise has a standard deviation of 1 in the real and in the imaginary part of each coil.

    Raises:
        DataError: DATA-02 damaged, DATA-10 no readout of an image, DATA-14 sampling that is not
            Cartesian or does not fit the header.
    """
    with damage_of(path):
        return _open(path, file, group, whiten, remove_oversampling)


def _open(
    path: Path, file: h5py.File, group: h5py.Group, whiten: bool, remove_oversampling: bool
) -> KSpace:
    raw = group["xml"][0]
    xml = parse_xml(path, raw)
    table = group["data"]
    if table.dtype.names is None or not {"head", "data"} <= set(table.dtype.names):
        raise DataError("DATA-03", f"{path}: `data` is no table of readouts.")
    heads: Any = table.fields("head")[:] if len(table) else np.empty(0)
    if xml.trajectory != "cartesian":
        raise DataError(
            "DATA-14", f"{path}: the trajectory is not Cartesian.", fix="Grid it first."
        )
    if not len(heads):
        raise DataError("DATA-10", f"{path}: holds no readouts.")
    numbers = np.flatnonzero([is_image(head) for head in heads])
    if not len(numbers):
        raise DataError("DATA-10", f"{path}: holds no readout of an image.")
    coils = np.unique(heads["active_channels"][numbers])
    if len(coils) > 1:
        found = " and ".join(map(str, coils.tolist()))
        raise DataError("DATA-14", f"{path}: the number of coils changes within the scan: {found}.")
    keep = _readout_to_keep(xml) if remove_oversampling and not xml.keep_readout else None
    plan = _Plan(
        path=path,
        data=table,
        heads=heads,
        matrix=xml.encoded_matrix,
        keep_x=keep or xml.encoded_matrix[0],
        centers=(xml.line_center, xml.partition_center),
        whitener=_whitener(path, table, heads, numbers, int(coils[0]), xml) if whiten else None,
        num_coils=int(coils[0]),
    )
    phase, partition = plan.places(numbers)
    if not (_inside(phase, plan.matrix[1]) and _inside(partition, plan.matrix[2])):
        raise DataError("DATA-14", f"{path}: lines outside the matrix that the header states.")
    return _sorted(path, file, plan, numbers, xml)


def _sorted(
    path: Path, file: h5py.File, plan: _Plan, numbers: npt.NDArray[np.int64], xml: MrdXml
) -> KSpace:
    idx = plan.heads["idx"][numbers]
    keys = np.stack([idx[name] for name in VOLUME_COUNTERS], axis=1)
    volumes, volume_of = np.unique(keys, axis=0, return_inverse=True)
    order = _slice_order(plan.heads[numbers])
    groups: dict[tuple[int, int], npt.NDArray[np.int64]] = defaultdict(lambda: numbers[:0])
    for volume in range(len(volumes)):
        for place, number in enumerate(order):
            chosen = (volume_of.ravel() == volume) & (idx["slice"] == number)
            groups[volume, place] = numbers[chosen]
    partitions = plan.matrix[2]
    shape = (
        partitions if partitions > 1 else len(order), plan.num_coils, plan.keep_x, plan.matrix[1]
    )  # fmt: skip
    if partitions > 1 and len(order) > 1:
        raise DataError("DATA-14", f"{path}: several slabs of a 3-D scan are not read.")
    hybrid = _Partitions(plan, shape) if partitions > 1 else None

    def read_slice(index: int, volume: int = 0) -> Samples:
        with damage_of(path):
            if hybrid is not None:
                return hybrid.slice(volume, groups[volume, 0], index)
            return _grid(plan, groups[volume, index])

    def mask(volume: int = 0) -> npt.NDArray[np.bool_]:
        on = np.zeros(plan.matrix[1], dtype=bool)
        for (number, _), members in groups.items():
            if number == volume:
                on[plan.places(members)[0]] = True
        return on

    x, y, z = xml.encoded_fov_mm
    x = x * plan.keep_x / plan.matrix[0]
    recon_z = xml.recon_matrix[2]
    header = KSpaceHeader(
        encoded_matrix=(plan.keep_x, plan.matrix[1], 1),
        recon_matrix=(*xml.recon_matrix[:2], 1),
        encoded_fov_mm=(x, y, z / partitions),
        recon_fov_mm=(*xml.recon_fov_mm[:2], xml.recon_fov_mm[2] / recon_z),
        phase_center=xml.phase_center,
        phase_count=xml.phase_count,
        acceleration=xml.acceleration,
        affine=_affine(plan.heads[numbers], order, shape, (x, y, z)),
        facts=xml.facts,
    )
    return KSpace.from_slices(
        header=header,
        shape=shape,
        read_slice=read_slice if len(volumes) > 1 else lambda i: read_slice(i, 0),
        mask=mask,
        num_volumes=len(volumes),
        path=path,
        layout="ismrmrd",
        close=file.close,
    )


def _grid(plan: _Plan, numbers: npt.NDArray[np.int64]) -> Samples:
    """One slice ``[coils, readout, phase]``, lines measured several times averaged."""
    grid = np.zeros((plan.num_coils, plan.keep_x, plan.matrix[1]), dtype=np.complex64)
    phase, _ = plan.places(numbers)
    for place, (_, samples) in zip(phase, plan.readouts(numbers), strict=True):
        grid[:, :, place] += samples
    counts = np.maximum(np.bincount(phase, minlength=plan.matrix[1]), 1)
    return np.asarray(grid / counts, dtype=np.complex64)


class _Partitions:
    """Slices of a 3-D scan: its k-space on disk in a nameless file, transformed along z."""

    def __init__(self, plan: _Plan, shape: tuple[int, int, int, int]) -> None:
        self._plan = plan
        self._shape = shape
        self._volume = -1
        self._slices: npt.NDArray[np.complex64] | None = None

    def slice(self, volume: int, numbers: npt.NDArray[np.int64], index: int) -> Samples:
        if volume != self._volume or self._slices is None:
            self._slices, self._volume = self._transformed(numbers), volume
        return np.array(self._slices[index])

    def _transformed(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.complex64]:
        with tempfile.TemporaryFile() as file:
            grid = np.memmap(file, np.complex64, "w+", shape=self._shape)
            phase, partition = self._plan.places(numbers)
            counts = np.zeros((self._shape[0], self._shape[3]), dtype=np.float32)
            readouts = self._plan.readouts(numbers)
            for y, z, (_, samples) in zip(phase, partition, readouts, strict=True):
                grid[z, :, :, y] += samples
                counts[z, y] += 1
            for coil in range(self._shape[1]):
                mean = grid[:, coil] / np.maximum(counts, 1)[:, None, :]
                grid[:, coil] = _ifft(np.asarray(mean, dtype=np.complex64), 0)
            return grid


def _whitener(
    path: Path,
    table: Any,
    heads: Any,
    numbers: npt.NDArray[np.int64],
    num_coils: int,
    xml: MrdXml,
) -> npt.NDArray[np.complex128] | None:
    """``sqrt(2 dwell / noise dwell * bandwidth) L^-1`` with the noise covariance ``L L^H``.

    Noise power is proportional to the bandwidth of the receiver, 1 / dwell; the noise scan passes
    only its part of the band (relativeReceiverNoiseBandwidth).
    """
    noise = np.flatnonzero([_has(head, _NOISE) for head in heads])
    if not len(noise):
        return None
    if set(heads["active_channels"][noise].tolist()) != {num_coils}:
        raise DataError("DATA-14", f"{path}: the noise scan has another number of coils.")
    covariance = np.zeros((num_coils, num_coils), dtype=np.complex128)
    count = 0
    with damage_of(path):
        for number in noise:
            samples = _complex(path, heads[number], table.fields("data")[number], num_coils)
            covariance += samples.astype(np.complex128) @ samples.conj().T
            count += samples.shape[1]
    dwell, noise_dwell = (float(heads["sample_time_us"][k[0]]) for k in (numbers, noise))
    scale = dwell / noise_dwell if dwell > 0 and noise_dwell > 0 else 1.0
    try:
        lower = np.linalg.cholesky(covariance / max(count - 1, 1))
    except np.linalg.LinAlgError:
        raise DataError(
            "DATA-14",
            f"{path}: {count} samples of noise do not give an invertible covariance of {num_coils} "
            "coils.",
            fix="Read it with whiten=False.",
        ) from None
    factor = np.sqrt(2 * scale * (xml.noise_bandwidth or 1.0))
    return np.asarray(factor * np.linalg.inv(lower))


def _readout_to_keep(xml: MrdXml) -> int | None:
    """Samples of the readout that cover the field of view of the image."""
    encoded, wanted = xml.encoded_fov_mm[0], xml.recon_fov_mm[0]
    if not 0 < wanted < encoded:
        return None
    return round(xml.encoded_matrix[0] * wanted / encoded)


def _slice_order(heads: Any) -> list[int]:
    """Slice counters, which may follow time, in the order of positions along the slice normal."""
    places: dict[int, float] = {}
    normal = heads["slice_dir"][0].astype(np.float64)
    for number, position in zip(heads["idx"]["slice"], heads["position"], strict=True):
        places.setdefault(int(number), float(position.astype(np.float64) @ normal))
    return sorted(places, key=lambda number: (round(places[number], 3), number))


def _affine(
    heads: Any,
    order: list[int],
    shape: tuple[int, int, int, int],
    fov_mm: tuple[float, float, float],
) -> tuple[float, ...] | None:
    """Index (slice, readout, phase) to RAS+ mm; `position` is the center of slice or slab, LPS."""
    first = heads[np.flatnonzero(heads["idx"]["slice"] == order[0])[0]]
    last = heads[np.flatnonzero(heads["idx"]["slice"] == order[-1])[0]]
    read, phase, normal = (
        first[name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir")
    )
    size = (fov_mm[0] / shape[2], fov_mm[1] / shape[3])
    if min(*size, fov_mm[2]) <= 0 or any(
        abs(np.linalg.norm(v) - 1) > 1e-2 for v in (read, phase, normal)
    ):
        return None
    position = first["position"].astype(np.float64)
    if len(order) > 1:
        step = (last["position"].astype(np.float64) - position) / (len(order) - 1)
        origin = position
    else:
        step = normal * fov_mm[2] / shape[0]
        origin = position - step * (shape[0] // 2)
    if np.linalg.norm(step) == 0:
        return None
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = step, read * size[0], phase * size[1]
    lps[:3, 3] = origin - lps[:3, 1] * (shape[2] // 2) - lps[:3, 2] * (shape[3] // 2)
    return tuple(float(x) for x in (_LPS_TO_RAS @ lps).ravel())


def _has(head: Any, flag: int) -> bool:
    return bool(int(head["flags"]) >> (flag - 1) & 1)


def _inside(places: npt.NDArray[np.int64], size: int) -> bool:
    return bool(places.min() >= 0 and places.max() < size)


def _complex(path: Path, head: Any, values: Any, num_coils: int) -> Samples:
    samples = np.asarray(values, dtype=np.float32).view(np.complex64)
    if samples.size != num_coils * int(head["number_of_samples"]):
        raise DataError("DATA-14", f"{path}: a readout of another length than it says itself.")
    return samples.reshape(num_coils, -1)


def _ifft(x: Samples, axis: int) -> Samples:
    moved = np.fft.ifft(np.fft.ifftshift(x, axes=axis), axis=axis, norm="ortho")
    return np.asarray(np.fft.fftshift(moved, axes=axis), dtype=np.complex64)


def _fft(x: Samples, axis: int) -> Samples:
    moved = np.fft.fft(np.fft.ifftshift(x, axes=axis), axis=axis, norm="ortho")
    return np.asarray(np.fft.fftshift(moved, axes=axis), dtype=np.complex64)
