"""GRAPPA by pygrappa (extra `grappa`): missing lines from their neighbors in all coils.

Source: Griswold et al., GRAPPA, MRM 47 (2002); McKenzie Larson, pygrappa. It is made for
equispaced lines; on random masks it is no better than zero-filling.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.files.kspace import Samples
from core_mri.physics.sensitivity import calibration_region


def grappa(samples: Samples, mask: npt.NDArray[np.bool_], name: str) -> Samples:
    """Fill the k-space of every coil.

    Args:
        samples: ``[coils, readout, phase]``, zero where not measured.
        mask: ``[phase]``.
        name: File and slice, for messages.

    Raises:
        ConfigError: CONFIG-06 without pygrappa, CONFIG-05 for a mask of single points.
        DataError: DATA-21 without a fully sampled center.
    """
    if importlib.util.find_spec("pygrappa") is None:
        raise ConfigError(
            "CONFIG-06", "GRAPPA needs pygrappa.", fix="Install it: pip install 'core-mri[grappa]'."
        )
    from pygrappa import grappa as fill

    if mask.ndim > 1:
        raise ConfigError(
            "CONFIG-05", f"{name}: GRAPPA fills lines, this mask picks single points.",
            fix="Use wavelet.",
        )  # fmt: skip
    try:
        region = calibration_region(mask, samples.shape[1], size=32)
    except ValueError as error:
        raise DataError(
            "DATA-21", f"{name}: {error}.", fix="Use zero-filled, or data with calibration lines."
        ) from None
    if mask.all():
        return samples
    # Lines of padding count as measured for the other sources; here they are left at zero.
    double = samples.astype(np.complex128).transpose(1, 2, 0)
    center = double[:, region.left : region.right].copy()
    filled = fill(double, center, kernel_size=(5, 5), coil_axis=-1)
    return np.asarray(filled.transpose(2, 0, 1), dtype=np.complex64)
