"""Reading and writing scans: DICOM series and NIfTI, both to and from `core_mri.volume.Volume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.files.scans import read_volume, write_volume

__all__ = ["read_volume", "write_volume"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from core_mri.files import scans

        return getattr(scans, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
