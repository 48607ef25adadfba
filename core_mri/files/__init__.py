"""Reading and writing scans: volumes of images and labels, and raw data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.files.kspace import KSpace, KSpaceHeader, read_kspace, write_kspace
    from core_mri.files.scans import read_volume, write_volume

_HOME = {
    "KSpace": "kspace",
    "KSpaceHeader": "kspace",
    "read_kspace": "kspace",
    "read_volume": "scans",
    "write_kspace": "kspace",
    "write_volume": "scans",
}

__all__ = [
    "KSpace",
    "KSpaceHeader",
    "read_kspace",
    "read_volume",
    "write_kspace",
    "write_volume",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"core_mri.files.{_HOME[name]}"), name)
