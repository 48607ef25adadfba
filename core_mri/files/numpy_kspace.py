"""Raw data in ``.npy``: complex (coils, readout, phase) or (slices, coils, readout, phase)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.files.kspace import KSpace, KSpaceHeader


def read_npy_kspace(path: Path) -> KSpace:
    """Open an array; it is mapped, not loaded, and never unpickled.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no complex array
            or one that would have to be unpickled, DATA-14 another number of axes.
    """
    return array_kspace(open_npy(path), path)


def array_kspace(array: npt.NDArray[np.generic], path: Path | None = None) -> KSpace:
    """A scan of samples in memory.

    Nothing states geometry or contrast. The mask is what is not zero in some coil of some slice: of
    lines, or of single points where lines are partly zero.

    Args:
        array: Complex (coils, readout, phase) or (slices, coils, readout, phase).
        path: Where it comes from.

    Raises:
        DataError: DATA-03 no complex array, DATA-14 another number of axes.
    """
    name = "k-space" if path is None else f"{path}"
    if array.dtype.kind != "c":
        raise DataError("DATA-03", f"{name}: holds {array.dtype}, raw data is complex.")
    if array.ndim not in (3, 4):
        raise DataError(
            "DATA-14",
            f"{name}: expected (coils, readout, phase) or (slices, coils, readout, phase), got "
            f"shape {array.shape}.",
        )
    stack = array if array.ndim == 4 else array[None]
    num_slices, num_coils, readout, phase = stack.shape
    acquired = np.zeros((readout, phase), dtype=bool)
    for samples in stack:
        acquired |= (samples != 0).any(axis=0)
    lines: npt.NDArray[np.bool_] = np.asarray(acquired.any(axis=0))
    whole = bool((acquired == lines).all())

    def read_slice(index: int) -> npt.NDArray[np.complex64]:
        return stack[index].astype(np.complex64)

    return KSpace.from_slices(
        header=KSpaceHeader(
            encoded_matrix=(readout, phase, 1),
            recon_matrix=(readout, phase, 1),
            phase_center=phase // 2,
            phase_count=phase,
            facts={"Modality": "MR"},
        ),
        shape=(num_slices, num_coils, readout, phase),
        read_slice=read_slice,
        mask=lines if whole else acquired,
        path=path,
        layout="npy",
    )


def open_npy(path: Path) -> npt.NDArray[np.generic]:
    """Map an array of numbers into memory.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 an array of
            Python objects, which is never unpickled.
    """
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except (ValueError, EOFError, SyntaxError) as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise DataError(
                "DATA-03",
                f"{path}: no array of numbers; Python objects are never unpickled.",
                fix="Save it as an array of one number type.",
            ) from None
        raise DataError("DATA-02", f"{path}: truncated or damaged .npy file.") from None
    return array
