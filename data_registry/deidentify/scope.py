"""What is done beside the header: pixels, faces, and which objects that are no scans go out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PixelMode = Literal["skip", "check", "blank"]
FacePolicy = Literal["keep", "crop", "deface"]
Extra = Literal["captures", "reports", "documents"]
Box = tuple[int, int, int, int]
"""Rows and columns from and to: (r0, c0, r1, c1), half-open."""

_CLASSES: dict[str, Extra] = {
    "1.2.840.10008.5.1.4.1.1.7": "captures",
    "1.2.840.10008.5.1.4.1.1.88": "reports",
    "1.2.840.10008.5.1.4.1.1.104": "documents",
}
"""Storage classes by their first numbers (PS3.4 Annex B.5): secondary captures, structured reports
(of dose too), encapsulated PDF, CDA and models."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What to do with what header rules do not reach.

    Args:
        pixels: ``check`` quarantines the series that shows text, ``blank`` takes away text that the
            file's own header tells, ``skip`` does not look.
        faces: ``crop`` or ``deface`` heads, and hold back those where it is not sure.
        regions: Rectangles that are blanked in every DICOM image (``blank`` only).
        extras: Objects that are no scans and go out all the same.
    """

    pixels: PixelMode = "skip"
    faces: FacePolicy = "keep"
    regions: tuple[Box, ...] = ()
    extras: tuple[Extra, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """As the audit states it."""
        return {
            "pixels": self.pixels,
            "faces": self.faces,
            "regions": [list(region) for region in self.regions],
            "extras": sorted(self.extras),
        }


DEFAULT = Scope()


def extra_of(sop_class: str) -> Extra | None:
    """What kind of object that is no scan a storage class stands for; None for images."""
    return next(
        (kind for start, kind in _CLASSES.items() if f"{sop_class}.".startswith(f"{start}.")), None
    )


def is_asked_for(sop_class: str, scope: Scope) -> bool:
    """Whether an object may go out at all: a scan, or of a kind that the user named."""
    kind = extra_of(sop_class)
    return kind is None or kind in scope.extras
