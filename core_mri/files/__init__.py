"""Reading and writing scans: volumes of images and labels, and raw data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.files.kspace import KSpace, KSpaceHeader, read_kspace, write_kspace
    from core_mri.files.scans import read_volume, write_volume
    from core_mri.files.segmentation import read_segmentation, write_segmentation

_HOME = {
    "KSpace": "kspace",
    "KSpaceHeader": "kspace",
    "read_kspace": "kspace",
    "read_segmentation": "segmentation",
    "read_volume": "scans",
    "write_kspace": "kspace",
    "write_segmentation": "segmentation",
    "write_volume": "scans",
}

__all__ = [
    "KSpace",
    "KSpaceHeader",
    "read_kspace",
    "read_segmentation",
    "read_volume",
    "write_kspace",
    "write_segmentation",
    "write_volume",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.files.{_HOME[name]}"), name)
