"""Which action PS3.15 Annex E asks for, by attribute, options and information object.

Actions of Table E.1-1a: D replace with a dummy, Z replace with nothing, X remove, K keep, C clean,
U replace the UID. Compound ones are resolved by the type of the attribute in its information object
(PS3.3), so that the object stays valid with as little removed as it allows:

===========  ======  ======  ======
action       type 1  type 2  type 3
===========  ======  ======  ======
X/Z          Z       Z       X
X/D          D       D       X
Z/D          D       Z       Z
X/Z/D        D       Z       X
X/Z/U*       U       U       U
===========  ======  ======  ======

X/Z/U* (references to images) always becomes U, so that references resolve after the change.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import Literal

from data_registry.deidentify.dictionary import TABLES
from data_registry.deidentify.profile import OPTIONS, Option, Profile

Action = Literal["D", "Z", "X", "K", "C", "U"]

EDITION = "2026c"
OPTIONS_EDITION = "2024e"
_RESOLVED: dict[str, dict[int, Action]] = {
    "X/Z": {1: "Z", 2: "Z", 3: "X"},
    "X/D": {1: "D", 2: "D", 3: "X"},
    "Z/D": {1: "D", 2: "Z", 3: "Z"},
    "X/Z/D": {1: "D", 2: "Z", 3: "X"},
    "X/Z/U*": {1: "U", 2: "U", 3: "U"},
}
_STRENGTH = {"K": 0, "C": 1}


@dataclass(frozen=True)
class Row:
    """A row of Table E.1-1.

    Args:
        name: Of the attribute; empty for some of the newest.
        basic: Action of the Basic Profile, maybe compound.
        options: Action under each option that has one.
    """

    name: str
    basic: str
    options: dict[Option, Action]

    def action(self, profile: Profile) -> str:
        """Action under `profile`, maybe compound; keeping wins over cleaning."""
        chosen = [self.options[o] for o in profile.options if o in self.options]
        return min(chosen, key=_STRENGTH.__getitem__) if chosen else self.basic


@cache
def rows() -> dict[str, Row]:
    """Tag as eight hexadecimal digits, ``50XXXXXX``, ``60XX3000``, ``60XX4000`` or ``private``."""
    with (TABLES / f"ps3_15_{EDITION}.csv").open(encoding="utf-8", newline="") as stream:
        return {
            line["tag"]: Row(
                line["name"],
                line["basic"],
                {option: line[option] for option in OPTIONS if line[option]},  # type: ignore[misc]
            )
            for line in csv.DictReader(stream)
        }


def row_of(tag: int) -> Row | None:
    """The row of an attribute of the standard; None when Table E.1-1 lists none."""
    group = tag >> 16
    if group & 0xFF00 == 0x5000:
        return rows()["50XXXXXX"]
    if group & 0xFF00 == 0x6000:
        return rows().get(f"60XX{tag & 0xFFFF:04X}")
    return rows().get(f"{tag:08X}")


def resolve(action: str, tag: int, within: int, sop_class: str) -> Action:
    """One action for a compound one.

    Args:
        action: As `Row.action` gives it.
        tag: The attribute.
        within: Tag of the sequence that it stands in; 0 at the top.
        sop_class: UID of the object's class.
    """
    if "/" not in action:
        return action  # type: ignore[return-value]
    return _RESOLVED[action][_type_of(tag, within, sop_class)]


def _type_of(tag: int, within: int, sop_class: str) -> int:
    """1, 2 or 3; where this object does not define the attribute, what most others say."""
    known = _types().get((tag, within)) or _types().get((tag, 0))
    if known is None:
        return 3
    return known.get(_objects().get(sop_class, ""), known["*"])


@cache
def _types() -> dict[tuple[int, int], dict[str, int]]:
    types: dict[tuple[int, int], dict[str, int]] = {}
    with (TABLES / "attribute_types.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            place = int(line["tag"], 16), int(line["within"] or "0", 16)
            own = types.setdefault(place, {})
            own.update(dict.fromkeys(line["objects"].split(), int(line["type"])))
    return types


@cache
def _objects() -> dict[str, str]:
    with (TABLES / "sop_classes.csv").open(encoding="utf-8", newline="") as stream:
        return {line["uid"]: line["object"] for line in csv.DictReader(stream)}
