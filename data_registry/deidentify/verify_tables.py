"""What the verifier knows of attributes: the published tables, read by its own code."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from data_registry.deidentify.verify_reader import Value

_TABLES = Path(__file__).parent / "tables"
_OPTION_OF_CODE = {
    "113103": "graphics", "113104": "structured_content", "113105": "descriptors",
    "113106": "full_dates", "113107": "modified_dates", "113108": "patient_characteristics",
    "113109": "device", "113110": "uids", "113111": "safe_private", "113112": "institution",
    "113101": "pixels", "113102": "faces",
}  # fmt: skip
_CODE, _SCHEME, _MEANING = 0x00080100, 0x00080102, 0x00080104
_METHOD_CODES = 0x00120064


def claims(values: list[Value]) -> Iterator[str]:
    """Options that an output claims by its method codes (CID 7050)."""
    for value in values:
        if value.path[0] == _METHOD_CODES and value.tag == _CODE:
            option = _OPTION_OF_CODE.get(bytes(value.raw).decode("latin-1").strip())
            if option:
                yield option


def local_codes(values: list[Value]) -> set[tuple[int, ...]]:
    """Paths of codes and meanings of schemes that are no published ones."""
    items = {
        value.path[:-1]
        for value in values
        if value.tag == _SCHEME
        and bytes(value.raw).strip(b" \0").decode("latin-1") not in _published()
    }
    return {(*item, tag) for item in items for tag in (_CODE, _MEANING)}


class Creators:
    """Names of private creators seen so far, by place, and whether they are published ones."""

    def __init__(self) -> None:
        self._seen: dict[tuple[tuple[int, ...], int, int], str] = {}

    def names(self, value: Value) -> bool:
        """Notes a creator; whether its name is a published one, which names nobody."""
        number = value.tag & 0xFFFF
        if not 0x10 <= number <= 0xFF:
            return False
        raw = bytes(value.raw)
        self._seen[value.path[:-1], value.tag >> 16, number] = _creator_name(raw)
        return is_published_creator(raw)

    def is_safe(self, value: Value) -> bool:
        """Whether a private value is of a safe attribute of its creator."""
        group, number = value.tag >> 16, value.tag & 0xFFFF
        name = self._seen.get((value.path[:-1], group, number >> 8), "")
        return (group, number & 0xFF) in _safe_private().get(name, ())


@lru_cache(maxsize=1024)
def _creator_name(raw: bytes) -> str:
    return raw.decode("latin-1").strip(" \0")


def is_published_creator(raw: bytes) -> bool:
    """Whether a private creator is one of the safe list, whose name names nobody."""
    return _creator_name(raw) in _safe_private()


@cache
def _published() -> frozenset[str]:
    """Coding schemes whose codes are the same in every hospital."""
    import yaml

    lists = yaml.safe_load((_TABLES / "policy.yaml").read_text(encoding="utf-8"))
    return frozenset(lists["coding_schemes"])


@cache
def _safe_private() -> dict[str, set[tuple[int, int]]]:
    safe: dict[str, set[tuple[int, int]]] = {}
    with (_TABLES / "safe_private.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            place = int(line["group"], 16), int(line["element"], 16)
            safe.setdefault(line["creator"], set()).add(place)
    return safe


@cache
def _table() -> dict[int, dict[str, str]]:
    (path,) = _TABLES.glob("ps3_15_*.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            int(line["tag"], 16): {name: cell for name, cell in line.items() if cell}
            for line in csv.DictReader(stream)
            if re.fullmatch("[0-9A-F]{8}", line["tag"])
        }


def row_of(tag: int) -> dict[str, str]:
    """The filled cells of the attribute's row; empty when Table E.1-1 lists none."""
    return _table().get(tag, {})


@cache
def may_stay(tag: int, options: frozenset[str]) -> bool:
    """Whether a value may be as it was: not listed, or kept by a claimed option."""
    group = tag >> 16
    if group & 1 or group == 2 or (group & 0xFF00 in (0x5000, 0x6000) and _is_overlay_text(tag)):
        return False
    row = row_of(tag)
    if not row:
        typed = any(word in _keyword(tag) for word in ("Description", "Comment", "ProtocolName"))
        return not typed and dictionary_vr(tag) not in ("PN", "AE", "UR", "UN", "LT", "ST", "UT")
    return any(row.get(option) == "K" for option in options)


def _is_overlay_text(tag: int) -> bool:
    return tag >> 16 & 0xFF00 == 0x5000 or tag & 0xFFFF in (0x3000, 0x4000)


@cache
def _dictionary() -> dict[str, list[str]]:
    """Tag or pattern to VR and keyword."""
    with (_TABLES / "dictionary.csv").open(encoding="utf-8") as stream:
        return {line[:8]: line.strip().split(",")[1:] for line in stream}


def _keyword(tag: int) -> str:
    return _dictionary().get(f"{tag:08X}", ["", ""])[1]


@cache
def dictionary_vr(tag: int) -> str:
    """VR of an attribute of the standard; LO for private creators, UN when unknown."""
    name = f"{tag:08X}"
    found = _dictionary().get(name) or _dictionary().get(f"{name[:2]}XX{name[4:]}")
    if found:
        return found[0]
    return "LO" if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
