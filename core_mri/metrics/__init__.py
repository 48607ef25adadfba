"""Scores of an estimate against a reference, and how sure a mean over patients is.

Importing this package is light: every name loads its module, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.metrics.classification import (
        auprc,
        auroc,
        balanced_accuracy,
        brier,
        calibration_error,
        reliability,
    )
    from core_mri.metrics.image import nmse, psnr, ssim
    from core_mri.metrics.intervals import (
        Interval,
        bootstrap_interval,
        bootstrap_statistic,
        detectable_difference,
        holm,
        paired_permutation,
        smallest_p,
    )
    from core_mri.metrics.segmentation import dice, hausdorff95, surface_dice

_HOME = {
    "Interval": "intervals",
    "auprc": "classification",
    "auroc": "classification",
    "balanced_accuracy": "classification",
    "bootstrap_interval": "intervals",
    "bootstrap_statistic": "intervals",
    "brier": "classification",
    "calibration_error": "classification",
    "detectable_difference": "intervals",
    "dice": "segmentation",
    "hausdorff95": "segmentation",
    "holm": "intervals",
    "nmse": "image",
    "paired_permutation": "intervals",
    "psnr": "image",
    "reliability": "classification",
    "smallest_p": "intervals",
    "ssim": "image",
    "surface_dice": "segmentation",
}

__all__ = [
    "Interval",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "bootstrap_interval",
    "bootstrap_statistic",
    "brier",
    "calibration_error",
    "detectable_difference",
    "dice",
    "hausdorff95",
    "holm",
    "nmse",
    "paired_permutation",
    "psnr",
    "reliability",
    "smallest_p",
    "ssim",
    "surface_dice",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'core_mri.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.metrics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
