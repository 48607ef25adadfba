"""Profiles of de-identification: the Basic Profile of PS3.15 Annex E and a set of its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from core_mri.errors import ConfigError

Option = Literal[
    "safe_private",
    "uids",
    "device",
    "institution",
    "patient_characteristics",
    "full_dates",
    "modified_dates",
    "descriptors",
    "structured_content",
    "graphics",
]
"""Options of PS3.15 E.3 that concern headers; the names of the columns of the table."""

OPTIONS: tuple[Option, ...] = get_args(Option)
CODES: dict[str, tuple[str, str]] = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "graphics": ("113103", "Clean Graphics Option"),
    "structured_content": ("113104", "Clean Structured Content Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "safe_private": ("113111", "Retain Safe Private Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
}
"""Code and meaning in CID 7050 (PS3.16)."""
CLEAN_PIXELS = "113101", "Clean Pixel Data Option"
"""Recorded for files whose pixels were read."""
CLEAN_FACES = "113102", "Clean Recognizable Visual Features Option"
"""Recorded for heads whose face was removed."""


@dataclass(frozen=True)
class Profile:
    """The Basic Profile with options.

    Args:
        name: How audit and files call it.
        options: Those that apply.

    Raises:
        ConfigError: CONFIG-01 for an unknown option, CONFIG-05 for two options about dates.
    """

    name: str
    options: frozenset[Option] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.options - set(OPTIONS)
        if unknown:
            raise ConfigError(
                "CONFIG-01", f"no option {sorted(unknown)}; there are {', '.join(OPTIONS)}."
            )
        if {"full_dates", "modified_dates"} <= self.options:
            raise ConfigError("CONFIG-05", "dates are either kept or modified, not both.")

    @property
    def codes(self) -> list[str]:
        """Codes of CID 7050 for what this profile does, ascending."""
        return sorted(CODES[name][0] for name in ("basic", *self.options))

    @property
    def temporal(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303)."""
        if "full_dates" in self.options:
            return "UNMODIFIED"
        return "MODIFIED" if "modified_dates" in self.options else "REMOVED"


PROFILES: dict[str, Profile] = {
    "basic": Profile("basic"),
    "tcia-mr": Profile(
        "tcia-mr",
        frozenset(
            {
                "safe_private",
                "patient_characteristics",
                "modified_dates",
                "descriptors",
                "structured_content",
            }
        ),
    ),
}
"""Profiles by name. ``tcia-mr`` has the options of The Cancer Imaging Archive, and structured
content, which holds contrast and acquisition context of MR."""
