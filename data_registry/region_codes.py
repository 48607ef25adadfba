"""Coded names of body regions: SNOMED CT and DICOM, for exchange with other systems."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from data_registry.vocabulary import read_table


@dataclass(frozen=True)
class RegionCode:
    """A region as Anatomic Region Sequence (0008,2218) and Body Part Examined write it."""

    value: str
    scheme: str
    """``SCT`` (SNOMED CT) or ``DCM``."""
    meaning: str
    body_part: str
    """Defined term of Body Part Examined (0018,0015); empty where PS3.16 table L-1 has none."""


@cache
def region_codes() -> dict[str, RegionCode]:
    """Region (`label_words.regions`, without ``unknown``) to its code."""
    return {
        name: RegionCode(
            entry["code"][0], entry.get("scheme", "SCT"), entry["code"][1],
            entry.get("body_part", ""),
        )
        for name, entry in read_table("region_codes").items()
    }  # fmt: skip
