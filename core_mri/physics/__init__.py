"""Physics of MRI: Fourier conventions, coils, undersampling, synthetic anatomy and signals.

Importing this package is light: every name loads its module, and with it torch, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.physics.coils import (
        coil_combine,
        coil_expand,
        emulate_single_coil,
        emulated_single_coil_weights,
        root_sum_of_squares,
    )
    from core_mri.physics.fourier import fft2c, fftnc, ifft2c, ifftnc
    from core_mri.physics.masks import (
        UndersamplingMask,
        apply_mask,
        center_lines,
        draw_mask,
        mask_seed,
        undersampling_mask,
    )
    from core_mri.physics.preparation import (
        center_crop,
        crop_size,
        normalize,
        normalize_instance,
        zero_padding,
    )

_HOME = {
    "UndersamplingMask": "masks",
    "apply_mask": "masks",
    "center_crop": "preparation",
    "center_lines": "masks",
    "coil_combine": "coils",
    "coil_expand": "coils",
    "crop_size": "preparation",
    "draw_mask": "masks",
    "emulate_single_coil": "coils",
    "emulated_single_coil_weights": "coils",
    "fft2c": "fourier",
    "fftnc": "fourier",
    "ifft2c": "fourier",
    "ifftnc": "fourier",
    "mask_seed": "masks",
    "normalize": "preparation",
    "normalize_instance": "preparation",
    "root_sum_of_squares": "coils",
    "undersampling_mask": "masks",
    "zero_padding": "preparation",
}

__all__ = [
    "UndersamplingMask",
    "apply_mask",
    "center_crop",
    "center_lines",
    "coil_combine",
    "coil_expand",
    "crop_size",
    "draw_mask",
    "emulate_single_coil",
    "emulated_single_coil_weights",
    "fft2c",
    "fftnc",
    "ifft2c",
    "ifftnc",
    "mask_seed",
    "normalize",
    "normalize_instance",
    "root_sum_of_squares",
    "undersampling_mask",
    "zero_padding",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'core_mri.physics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.physics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
