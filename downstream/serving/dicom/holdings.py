"""The DICOM results of a user: which there are, what a query finds, where their bytes lie.

Everything comes from the indexes that jobs wrote; only jobs of the user are looked at.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core_mri.errors import ServingError
from downstream.serving.dicom.index import INDEXED, index_name
from downstream.serving.service import Service

Level = Literal["study", "series", "instance"]
Tags = dict[str, Any]
UID = r"^[0-9]+(\.[0-9]+)*$"
STUDY, SERIES, INSTANCE, CLASS = "0020000D", "0020000E", "00080018", "00080016"
_MAX_BYTES = 1 << 28
"""Of an index, unpacked: our own jobs write them, but one may have been taken over."""
_MAX_OBJECT = 1 << 31
_MODALITY, _MODALITIES = "00080060", "00080061"
_RETURNED: dict[Level, tuple[str, ...]] = {
    "study": (
        "00080005", "00080020", "00080030", "00080050", "00080090", "00081030", "00100010",
        "00100020", "00100030", "00100040", STUDY, "00200010",
    ),
    "series": (
        "00080021", "00080031", "00080060", "0008103E", SERIES, "00200011", "00200052", "00400244",
    ),
    "instance": (CLASS, INSTANCE, "00200013", "00280010", "00280011", "00280100", "00280008"),
}  # fmt: skip
"""Attributes that answers hold (PS3.18 tables 10.6.3-3 to 10.6.3-5), where the object has them."""
_RANGED = ("DA", "TM", "DT")
_EXACT = ("UI", *_RANGED)


@dataclass(frozen=True)
class Instance:
    """An object."""

    file: Path
    """The result that holds it."""
    member: str
    """Its name in there; empty where the result is the object itself."""
    syntax: str
    frames: tuple[tuple[tuple[int, int], ...], ...]
    """Offsets and lengths of the fragments of each frame."""
    tags: Tags = field(repr=False)

    def uid(self, tag: str) -> str:
        """The UID of a tag."""
        return str(first(self.tags, tag) or "")

    def content(self) -> bytes:
        """All bytes of the file.

        Raises:
            OSError: It was erased meanwhile.
            ServingError: SERVE-04 for one of 2 GB or more.
        """
        if not self.member:
            return self.file.read_bytes()
        with zipfile.ZipFile(self.file) as archive:
            if archive.getinfo(self.member).file_size > _MAX_OBJECT:
                raise ServingError("SERVE-04", "an object that is too large to be sent.")
            return archive.read(self.member)


def first(tags: Tags, tag: str) -> Any:
    """The first value of an element, None without."""
    values = tags.get(tag, {}).get("Value") or [None]
    return values[0]


def instances_of(service: Service, user: str) -> list[Instance]:
    """Objects of a user's done jobs; of one UID the newest."""
    found: dict[str, Instance] = {}
    for job in service.store.newest(user, service.limits.kept_jobs):
        if job.state != "done":
            continue
        for instance in instances_in(service, job.id):
            found.setdefault(instance.uid(INSTANCE), instance)
    return sorted(found.values(), key=_order)


def instances_in(service: Service, job: str, names: Sequence[str] = INDEXED) -> list[Instance]:
    """Objects among some results of a job."""
    folder = service.places.results / job
    return [instance for name in names for instance in _indexed(folder / name)]


def _order(instance: Instance) -> tuple[str, str, int, str]:
    number = first(instance.tags, "00200013")
    return (
        instance.uid(STUDY), instance.uid(SERIES), number if isinstance(number, int) else 0,
        instance.uid(INSTANCE),
    )  # fmt: skip


def _indexed(result: Path) -> tuple[Instance, ...]:
    path = result.with_name(index_name(result.name))
    try:
        return _read(result, path.stat().st_mtime_ns)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return ()  # erased meanwhile, or by a job that was taken over


@lru_cache(maxsize=64)
def _read(result: Path, _mtime: int) -> tuple[Instance, ...]:
    with gzip.open(result.with_name(index_name(result.name))) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        return ()
    found = (
        Instance(
            result, str(one["member"]), str(one["syntax"]),
            tuple(tuple((int(a), int(b)) for a, b in frame) for frame in one["frames"]),
            dict(one["tags"]),
        )
        for one in json.loads(content)
    )  # fmt: skip
    uid = re.compile(UID)
    return tuple(i for i in found if all(uid.match(i.uid(t)) for t in (STUDY, SERIES, INSTANCE)))


@dataclass(frozen=True)
class Query:
    """What is asked for.

    Args:
        level: What is listed.
        filters: Tag -> value as a text, with the wildcards of DICOM.
        include: Tags to tell beside those of the level; ``all`` tells all that an instance has.
    """

    level: Level
    filters: Mapping[str, str]
    include: Sequence[str] = ()


def tag_of(name: str) -> str:
    """Eight hexadecimal digits of a keyword or tag.

    Raises:
        ServingError: SERVE-36 for neither.
    """
    from pydicom.datadict import tag_for_keyword

    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        raise ServingError(
            "SERVE-36", f"{name[:60]!r} is no attribute.",
            fix="Use a keyword, such as PatientID, or a tag, such as 00100020.",
        )  # fmt: skip
    return f"{tag:08X}"


def answers(instances: Iterable[Instance], query: Query, url: str = "") -> list[Tags]:
    """What a query finds, each as DICOM JSON.

    Args:
        instances: Of the user.
        query: What is asked for.
        url: Of the service, for RetrieveURL; empty leaves it out.
    """
    keys: dict[Level, tuple[str, ...]] = {
        "study": (STUDY,), "series": (STUDY, SERIES), "instance": (STUDY, SERIES, INSTANCE),
    }  # fmt: skip
    groups: dict[tuple[str, ...], list[Instance]] = {}
    for instance in instances:
        key = tuple(instance.uid(tag) for tag in keys[query.level])
        groups.setdefault(key, []).append(instance)
    found = (_record(members, query, url) for members in groups.values())
    return [record for record in found if record is not None]


def _record(members: list[Instance], query: Query, url: str) -> Tags | None:
    one = members[0]
    computed = _computed(members, query.level, url)
    known = {**one.tags, **computed}
    if not all(matches(known, tag, value) for tag, value in query.filters.items()):
        return None
    levels: tuple[Level, ...] = ("study", "series", "instance")
    wanted = [t for lv in levels[: levels.index(query.level) + 1] for t in _RETURNED[lv]]
    wanted += [*computed, *query.filters, *query.include]
    if "all" in query.include and query.level == "instance":
        wanted += list(one.tags)
    return {tag: known[tag] for tag in sorted(set(wanted)) if tag in known}


def _computed(members: list[Instance], level: Level, url: str) -> Tags:
    """Attributes of a study, series or instance that no object holds."""
    one = members[0]
    found: Tags = {"00080056": {"vr": "CS", "Value": ["ONLINE"]}}
    place = f"{url}/studies/{one.uid(STUDY)}"
    if level == "study":
        modalities = sorted({str(first(i.tags, _MODALITY) or "OT") for i in members})
        found[_MODALITIES] = {"vr": "CS", "Value": modalities}
        found["00201206"] = {"vr": "IS", "Value": [len({i.uid(SERIES) for i in members})]}
        found["00201208"] = {"vr": "IS", "Value": [len(members)]}
    if level == "series":
        place += f"/series/{one.uid(SERIES)}"
        found["00201209"] = {"vr": "IS", "Value": [len(members)]}
    if level == "instance":
        place += f"/series/{one.uid(SERIES)}/instances/{one.uid(INSTANCE)}"
    if url:
        found["00081190"] = {"vr": "UR", "Value": [place]}
    return found


def matches(known: Tags, tag: str, wanted: str) -> bool:
    """Whether an element has a value that is asked for (PS3.4 C.2.2.2).

    Nothing asks for anything; a list of UIDs for any of them; dates and times may be ranges; other
    texts may have ``*`` and ``?`` and are compared without case.
    """
    if wanted in ("", "*"):
        return True
    element = known.get(tag, {})
    kind = element.get("vr", "")
    values = [_text(value) for value in element.get("Value") or [""]]
    if kind in _RANGED and "-" in wanted:
        low, _, high = wanted.partition("-")
        return any(v and (not low or v >= low) and (not high or v <= high) for v in values)
    if kind in _EXACT:
        return any(value in re.split(r"[,\\]", wanted) for value in values)
    pattern = re.sub(r"\[", "[[]", wanted).lower()
    return any(fnmatchcase(value.lower(), pattern) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("Alphabetic", ""))
    return str(value)


def inside(
    instances: Iterable[Instance], study: str, series: str = "", instance: str = ""
) -> Iterator[Instance]:
    """Those of a study, or of a series or of one UID in it."""
    for one in instances:
        if one.uid(STUDY) == study and series in ("", one.uid(SERIES)) and (
            instance in ("", one.uid(INSTANCE))
        ):  # fmt: skip
            yield one
