"""Physics of MRI: Fourier conventions, coils, undersampling, reconstruction, synthetic anatomy.

Importing this package is light: every name loads its module, and with it torch, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.physics.classical import reconstruct
    from core_mri.physics.coils import (
        coil_combine,
        coil_expand,
        emulate_single_coil,
        emulated_single_coil_weights,
        root_sum_of_squares,
    )
    from core_mri.physics.compression import combine_coils, compress_readouts, compression_matrix
    from core_mri.physics.fourier import fft2c, fftnc, ifft2c, ifftnc
    from core_mri.physics.masks import (
        UndersamplingMask,
        apply_mask,
        center_lines,
        draw_mask,
        mask_seed,
        undersampling_mask,
    )
    from core_mri.physics.noise import noise_covariance, noise_level, whitening_matrix
    from core_mri.physics.operators import Sense, operator_norm
    from core_mri.physics.partial_fourier import homodyne, line_extent, pocs
    from core_mri.physics.preparation import (
        center_crop,
        crop_size,
        normalize,
        normalize_instance,
        zero_padding,
    )
    from core_mri.physics.residual import magnitude_residual
    from core_mri.physics.sensitivity import calibration_region, espirit_maps, low_resolution_maps
    from core_mri.physics.simulation import (
        birdcage_maps,
        resampled,
        simulate_kspace,
        smooth_phase,
    )
    from core_mri.physics.solvers import admm_tv, conjugate_gradient, fista_haar
    from core_mri.physics.sparsity import haar_analysis, haar_shrink, haar_synthesis

_HOME = {
    "Sense": "operators",
    "UndersamplingMask": "masks",
    "admm_tv": "solvers",
    "apply_mask": "masks",
    "birdcage_maps": "simulation",
    "calibration_region": "sensitivity",
    "center_crop": "preparation",
    "center_lines": "masks",
    "coil_combine": "coils",
    "coil_expand": "coils",
    "combine_coils": "compression",
    "compress_readouts": "compression",
    "compression_matrix": "compression",
    "conjugate_gradient": "solvers",
    "crop_size": "preparation",
    "draw_mask": "masks",
    "emulate_single_coil": "coils",
    "emulated_single_coil_weights": "coils",
    "espirit_maps": "sensitivity",
    "fft2c": "fourier",
    "fftnc": "fourier",
    "fista_haar": "solvers",
    "haar_analysis": "sparsity",
    "haar_shrink": "sparsity",
    "haar_synthesis": "sparsity",
    "homodyne": "partial_fourier",
    "ifft2c": "fourier",
    "ifftnc": "fourier",
    "line_extent": "partial_fourier",
    "low_resolution_maps": "sensitivity",
    "magnitude_residual": "residual",
    "mask_seed": "masks",
    "noise_covariance": "noise",
    "noise_level": "noise",
    "normalize": "preparation",
    "normalize_instance": "preparation",
    "operator_norm": "operators",
    "pocs": "partial_fourier",
    "reconstruct": "classical",
    "resampled": "simulation",
    "root_sum_of_squares": "coils",
    "simulate_kspace": "simulation",
    "smooth_phase": "simulation",
    "undersampling_mask": "masks",
    "whitening_matrix": "noise",
    "zero_padding": "preparation",
}

__all__ = [
    "Sense",
    "UndersamplingMask",
    "admm_tv",
    "apply_mask",
    "birdcage_maps",
    "calibration_region",
    "center_crop",
    "center_lines",
    "coil_combine",
    "coil_expand",
    "combine_coils",
    "compress_readouts",
    "compression_matrix",
    "conjugate_gradient",
    "crop_size",
    "draw_mask",
    "emulate_single_coil",
    "emulated_single_coil_weights",
    "espirit_maps",
    "fft2c",
    "fftnc",
    "fista_haar",
    "haar_analysis",
    "haar_shrink",
    "haar_synthesis",
    "homodyne",
    "ifft2c",
    "ifftnc",
    "line_extent",
    "low_resolution_maps",
    "magnitude_residual",
    "mask_seed",
    "noise_covariance",
    "noise_level",
    "normalize",
    "normalize_instance",
    "operator_norm",
    "pocs",
    "reconstruct",
    "resampled",
    "root_sum_of_squares",
    "simulate_kspace",
    "smooth_phase",
    "undersampling_mask",
    "whitening_matrix",
    "zero_padding",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'core_mri.physics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.physics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
