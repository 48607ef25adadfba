"""Scores of an estimate against a reference, and how sure a mean over patients is.

Importing this package is light: every name loads its module, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.metrics.classification import auroc, balanced_accuracy
    from core_mri.metrics.image import nmse, psnr, ssim
    from core_mri.metrics.intervals import Interval, bootstrap_interval, holm, paired_permutation
    from core_mri.metrics.segmentation import dice, hausdorff95, surface_dice

_HOME = {
    "Interval": "intervals",
    "auroc": "classification",
    "balanced_accuracy": "classification",
    "bootstrap_interval": "intervals",
    "dice": "segmentation",
    "hausdorff95": "segmentation",
    "holm": "intervals",
    "nmse": "image",
    "paired_permutation": "intervals",
    "psnr": "image",
    "ssim": "image",
    "surface_dice": "segmentation",
}

__all__ = [
    "Interval",
    "auroc",
    "balanced_accuracy",
    "bootstrap_interval",
    "dice",
    "hausdorff95",
    "holm",
    "nmse",
    "paired_permutation",
    "psnr",
    "ssim",
    "surface_dice",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'core_mri.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.metrics.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
