"""Raw data: `KSpace`, an open Cartesian scan read slice by slice, and its header.

Axes are ``[coils, readout, phase]`` for a slice, as in fastMRI, complex64, with the center of
k-space at ``n // 2`` (the convention of `core_mri.physics.fourier`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.volume import FactValue

Layout = Literal["fastmri", "ismrmrd", "npy", "twix", "registry"]
Samples = npt.NDArray[np.complex64]
Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]

_CONVERTERS = {
    ".7": "ge_to_ismrmrd",
    ".lab": "philips_to_ismrmrd",
    ".sin": "philips_to_ismrmrd",
    ".raw": "philips_to_ismrmrd",
    ".fid": "bruker_to_ismrmrd",
}


@dataclass(frozen=True, kw_only=True)
class KSpaceHeader:
    """Technical facts of raw data; only `facts` may identify a person."""

    encoded_matrix: tuple[int, int, int]
    """Readout x, phase y, partitions z, as stored."""
    recon_matrix: tuple[int, int, int]
    """Size of the image that the scanner reconstructs, x, y, z."""
    encoded_fov_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Field of view of the encoding, x, y, z; 0 where it is not stated."""
    recon_fov_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Field of view of the image."""
    phase_center: int
    """encodingLimits.kspace_encoding_step_1.center: the line of the center of k-space."""
    phase_count: int
    """encodingLimits.kspace_encoding_step_1.maximum + 1: lines that were acquired or skipped, but
    not padded."""
    trajectory: str = "cartesian"
    """``cartesian``, or what the file says instead."""
    acceleration: float = 1.0
    """Parallel imaging along phase, as the scanner states it."""
    affine: tuple[float, ...] | None = None
    """16 numbers, row by row: index (slice, readout, phase) of the inverse Fourier transform of the
    stored samples to RAS+ mm; None when the file states no position (fastMRI never does)."""
    acquisition: str = ""
    """fastMRI's name of the contrast, such as ``CORPD_FBK`` or ``AXT2``."""
    target_max: float | None = None
    """fastMRI's ``max``: the largest value of the reference image."""
    target_norm: float | None = None
    """fastMRI's ``norm``: the Euclidean norm of the reference image."""
    num_low_frequencies: int | None = None
    """fastMRI's ``num_low_frequency`` of masked test files."""
    facts: Mapping[str, FactValue] = field(default_factory=dict)
    """By DICOM keyword, as in `core_mri.volume.Volume`."""

    @property
    def padding_left(self) -> int:
        """First line that is more than zero padding: ``encoded y // 2 - center``."""
        return self.encoded_matrix[1] // 2 - self.phase_center

    @property
    def padding_right(self) -> int:
        """First line behind the acquired ones: ``padding_left + phase_count``."""
        return self.padding_left + self.phase_count

    def to_mapping(self) -> dict[str, object]:
        """Ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> KSpaceHeader:
        """The inverse of `to_mapping`; JSON's lists become tuples again."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()}
        return cls(**fields)  # type: ignore[arg-type]


class KSpace:
    """An open scan; a context manager. Only the slice that is asked for is in memory.

    Make one with `read_kspace`, or with `KSpace.from_slices` from anything that yields slices.

    Attributes:
        path: The file, None for one that is made of slices.
        layout: Where it comes from.
        header: Technical facts.
        shape: Slices, coils, readout, phase.
        num_volumes: Repetitions, contrasts, phases and sets, each a volume of this shape.
        single_coil: One coil, emulated or real (fastMRI's single-coil track).
        target_name: Name of the reference image in the file, "" without.
    """

    def __init__(
        self,
        *,
        header: KSpaceHeader,
        shape: tuple[int, int, int, int],
        read_slice: Callable[[int, int], Samples],
        mask: Callable[[int], Mask | None],
        target: Callable[[int], Image] | None,
        num_volumes: int,
        path: Path | None,
        layout: Layout,
        target_name: str,
        close: Callable[[], object] | None,
    ) -> None:
        self.path = path
        self.layout = layout
        self.header = header
        self.shape = shape
        self.num_volumes = num_volumes
        self.single_coil = shape[1] == 1
        self.target_name = target_name if target is not None else ""
        self._read_slice = read_slice
        self._mask = mask
        self._target = target
        self._close = close

    @classmethod
    def from_slices(
        cls,
        *,
        header: KSpaceHeader,
        shape: tuple[int, int, int, int],
        read_slice: Callable[..., Samples],
        mask: Mask | Callable[[int], Mask | None] | None = None,
        target: Callable[[int], Image] | None = None,
        num_volumes: int = 1,
        path: Path | None = None,
        layout: Layout = "registry",
        target_name: str = "",
        close: Callable[[], object] | None = None,
    ) -> KSpace:
        """A scan made of functions.

        Args:
            header: Its ``encoded_matrix`` is that of `shape`.
            shape: Slices, coils, readout, phase.
            read_slice: Slice index (and volume, where there are several) to complex64 samples.
            mask: Bool ``[phase]`` (or ``[readout, phase]``), or volume to such a mask.
            target: Slice index to the reference image ``[H, W]``.
            num_volumes: How many volumes.
            path: Where it comes from, for messages.
            layout: Likewise.
            target_name: Of the reference; fastMRI's by default.
            close: Called on leaving.
        """
        single = num_volumes == 1
        fixed = mask if not callable(mask) else None
        return cls(
            header=header,
            shape=shape,
            read_slice=(lambda i, _: read_slice(i)) if single else read_slice,
            mask=mask if callable(mask) else lambda _: fixed,
            target=target,
            num_volumes=num_volumes,
            path=path,
            layout=layout,
            target_name=target_name
            or ("reconstruction_esc" if shape[1] == 1 else "reconstruction_rss"),
            close=close,
        )

    def read_slice(self, index: int, volume: int = 0) -> Samples:
        """Samples of one slice, ``[coils, readout, phase]``; zero where nothing was acquired.

        Raises:
            DataError: DATA-02 when the file is damaged.
            IndexError: There is no such slice or volume.
        """
        if not (0 <= index < self.shape[0] and 0 <= volume < self.num_volumes):
            raise IndexError(f"slice {index} of {self.shape[0]}, volume {volume}")
        return self._read_slice(index, volume)

    def mask(self, volume: int = 0) -> Mask | None:
        """Acquired lines, bool ``[phase]``; None when the file says nothing about it.

        ``[readout, phase]`` where single points were acquired, as in a slice of a 3-D scan that is
        undersampled along both phase-encode directions.
        """
        return self._mask(volume)

    def target(self, index: int) -> Image | None:
        """Reference image ``[H, W]`` of a slice, None when the file has none."""
        return None if self._target is None else self._target(index)

    def close(self) -> None:
        """Close the file."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> KSpace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        slices, coils, readout, phase = self.shape
        return (
            f"KSpace({slices} slices, {coils} coils, {readout}x{phase}, "
            f"{self.num_volumes} volumes, {self.header.trajectory}, {self.layout})"
        )


def read_kspace(
    path: Path | str, *, whiten: bool = True, remove_oversampling: bool = True
) -> KSpace:
    """Open raw data: fastMRI or ISMRMRD HDF5, complex ``.npy``, Siemens ``.dat``.

    Args:
        path: The file; HDF5 layouts are told apart by what they hold.
        whiten: ISMRMRD: decorrelate the noise of the coils where the file has a noise scan.
        remove_oversampling: ISMRMRD: crop the readout to the field of view of the image.

    Raises:
        ConfigError: CONFIG-06 when twixtools is not installed.
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no raw data,
            DATA-10 no readouts, DATA-13 a file that points at others or unpacks to far more than it
            stores, DATA-14 sampling that is not Cartesian, a header of another size, a vendor's own
            format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("DATA-01", f"{path}: no such file.")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        from core_mri.files.numpy_kspace import read_npy_kspace

        return read_npy_kspace(path)
    if suffix == ".dat":
        from core_mri.files.twix import read_twix

        return read_twix(path)
    if suffix in _CONVERTERS or path.name in ("fid", "rawdata.job0"):
        converter = _CONVERTERS.get(suffix, "bruker_to_ismrmrd")
        raise DataError(
            "DATA-14",
            f"{path}: raw data in a vendor's own format, which is not read.",
            fix=f"Convert it with {converter} and read the ISMRMRD file.",
        )
    from core_mri.files.fastmri import open_fastmri
    from core_mri.files.hdf5 import open_hdf5
    from core_mri.files.ismrmrd_read import find_dataset, open_ismrmrd

    file = open_hdf5(path)
    try:
        if "kspace" in file:
            return open_fastmri(path, file)
        group = find_dataset(file)
        if group is not None:
            return open_ismrmrd(
                path, file, group, whiten=whiten, remove_oversampling=remove_oversampling
            )
    except BaseException:
        file.close()
        raise
    file.close()
    raise DataError(
        "DATA-03",
        f"{path}: HDF5 without raw data: neither a dataset `kspace` (fastMRI) nor a group with "
        "`xml` and `data` (ISMRMRD).",
    )


def image_affine(
    header: KSpaceHeader, shape: tuple[int, int, int, int]
) -> tuple[npt.NDArray[np.float64], bool]:
    """Index (slice, readout, phase) to RAS+ mm, and whether the file states it.

    Without stated geometry voxels are placed by the field of view alone, around the origin.
    """
    if header.affine is not None:
        return np.asarray(header.affine, dtype=np.float64).reshape(4, 4), True
    num_slices, _, readout, phase = shape
    fov_x, fov_y, fov_z = header.encoded_fov_mm
    sizes = (fov_z or 1.0, (fov_x or readout) / readout, (fov_y or phase) / phase)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -np.array(sizes) * (np.array([num_slices, readout, phase]) - 1) / 2
    return affine, False


def write_kspace(
    kspace: KSpace, path: Path | str, layout: Literal["fastmri", "ismrmrd"] = "fastmri"
) -> None:
    """Write raw data as HDF5, slice by slice; the file appears complete or not at all.

    Samples are kept exactly. Of the facts only technical ones are written: no name, no id, no date.

    Args:
        kspace: What to write.
        path: The file.
        layout: ``fastmri`` holds one volume, ``ismrmrd`` all.

    Raises:
        ConfigError: CONFIG-05 for several volumes in fastMRI's layout.
        DataError: DATA-07 when it cannot be written, DATA-14 when it is not Cartesian.
    """
    path = Path(path)
    if kspace.header.trajectory != "cartesian":
        raise DataError(
            "DATA-14", f"{path}: only Cartesian data is written, got {kspace.header.trajectory}."
        )
    if layout == "fastmri":
        from core_mri.files.fastmri import write_fastmri

        write_fastmri(kspace, path)
    else:
        from core_mri.files.ismrmrd_write import write_ismrmrd

        write_ismrmrd(kspace, path)
