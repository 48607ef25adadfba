"""A folder of originals against a folder of outputs: each pair found by content, then searched.

Without the key, an output is paired with its original by what de-identification does not change:
pixel data, instance number and position of DICOM; voxels of NIfTI; first samples of raw data; a
sidecar by the image beside it. An output without original cannot be verified and counts as failed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from core_mri.errors import DataError
from core_mri.files.fastmri import ACQUISITIONS
from core_mri.files.hdf5 import open_hdf5
from data_registry.deidentify.dictionary import tag_of
from data_registry.deidentify.mapped import map_file, pieces
from data_registry.deidentify.verify import Finding, find_leaks, find_text
from data_registry.deidentify.verify_reader import scan
from data_registry.deidentify.verify_tables import may_stay
from data_registry.vocabulary import is_technical, words
from data_registry.worker_pool import WorkerPool

AUDIT, LEDGER = "audit.jsonl", "review.jsonl"
_NIFTI_SIZES = (348, 540)
_SAME_TEXT = frozenset(
    (
        "systemVendor", "systemModel", "coilName", "trajectory", "patientPosition", "patientGender",
        "name", "type", "calibrationMode", "interleavingDimension", "diffusionDimension",
    )
)  # fmt: skip
"""Elements of an ISMRMRD header whose text may be as it was."""
_BATCH = 32
_MAP_FROM = 1 << 24
_NO_MARKS = ("", "")
_PLACE = frozenset(
    (tag,) for tag in (0x00080016, 0x00180081, 0x00200011, 0x00200012, 0x00200013, 0x00200032)
)
"""Class, echo time, numbers of series, acquisition and instance, position: none is changed."""
_KEYED_UID = re.compile(r"2\.25\.\d{30,39}(\.dcm)?")
"""Parts of a path that hold the number of an original's name by chance: only whole words count."""
_AUDITED = re.compile(
    r"|done|quarantined|left out|passed|vetoed|dicom|nifti|sidecar|ismrmrd|fastmri"
    r"|[A-Z]+-\d\d|[FCP][A-Z2-7]{16,26}"
    r"|P[A-Z2-7]{16}/((2\.25\.\d+/){2}2\.25\.\d+\.dcm|F[A-Z2-7]{16}\.(nii|nii\.gz|json|h5))"
    r"|[0-9A-Za-z]+ (name|text|date|time|uid|pixels)"
)


@dataclass(frozen=True)
class Checked:
    """An output.

    Args:
        output: Path below the output folder.
        findings: Of the verifier; empty when it passed.
        paired: Whether its original was found.
    """

    output: str
    findings: list[Finding]
    paired: bool


def verify_folder(source: Path, out: Path, *, jobs: int = 1) -> Iterator[Checked]:
    """Check every file below `out` against its original below `source`.

    Args:
        source: Originals.
        out: What a de-identifier made of them.
        jobs: Worker processes.

    Yields:
        One item per output, in order of names; the audit, which may hold keyed ids only, comes
        last.

    Raises:
        DataError: DATA-01 when one of the folders holds no file.
    """
    originals, outputs = _files(source), _files(out)
    audits = [path for path in outputs if path.name == AUDIT]
    outputs = [path for path in outputs if path.name not in (AUDIT, LEDGER)]
    by_print: dict[str, list[str]] = defaultdict(list)
    by_place: dict[str, list[str]] = defaultdict(list)
    with WorkerPool(jobs) as pool:
        for paths, marks in pool.each(_fingerprints, _batches(originals)):
            for path, (mark, place) in zip(paths, marks or [_NO_MARKS] * len(paths), strict=True):
                by_print[mark].append(path)
                by_place[place].append(path)
        pairs = []
        for paths, marks in pool.each(_fingerprints, _batches(outputs)):
            for path, (mark, place) in zip(paths, marks or [_NO_MARKS] * len(paths), strict=True):
                # Pixels that were blanked or cropped are another picture at the same place.
                found = by_print.get(mark) if mark else None
                found = found or (by_place.get(place) if place else None) or []
                pairs.append((path, tuple(found), str(out)))
        tasks = (tuple(pairs[i : i + _BATCH]) for i in range(0, len(pairs), _BATCH))
        for task, results in pool.each(_check_all, tasks):  # a crash costs its pair only
            yield from results or [
                Checked(p, [Finding("file", "unreadable")], True) for p, _, _ in task
            ]
    for audit in audits:
        yield Checked(audit.relative_to(out).as_posix(), _check_audit(audit), True)


def _files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if folder.is_file():
        files = [folder]
    if not files:
        raise DataError("DATA-01", f"{folder}: no file to read.", fix="Give a folder of scans.")
    return files


def _batches(paths: list[Path]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(paths), _BATCH):
        yield tuple(map(str, paths[start : start + _BATCH]))


def _fingerprints(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """What tells a file again: its pixels, or its place alone; empty where it cannot be read."""
    found = []
    for path in paths:
        try:
            found.append(_fingerprint(Path(path)))
        except (DataError, OSError, ValueError, KeyError, EOFError, struct.error, zlib.error):
            found.append(_NO_MARKS)
    return found


def _fingerprint(path: Path) -> tuple[str, str]:
    content = _content(path)
    if content[:8] == b"\x89HDF\r\n\x1a\n":
        return _hdf5_print(path), ""
    if path.suffix == ".json":
        return _sidecar_print(path), ""
    if _is_nifti(content):
        start, head = _nifti_start(content)
        version_1 = head[344:348] == b"n+1\0"
        shape = (
            head[40:56] + head[76:108] + head[280:328]
            if version_1
            else head[16:168] + head[400:496]
        )
        return (
            "nifti" + hashlib.sha256(content[start:]).hexdigest(),
            "nifti" + hashlib.sha256(shape).hexdigest(),
        )
    place, pixels = hashlib.sha256(), hashlib.sha256()
    for value in scan(content).values:
        if value.path in _PLACE:
            place.update(bytes(value.raw).strip(b" \0") + b"|")
        elif value.tag == 0x7FE00010 and len(value.path) == 1:
            for (piece,) in pieces(memoryview(value.raw)):
                pixels.update(piece)
    mark = place.hexdigest()
    return f"dicom{mark}{pixels.hexdigest()}", f"dicom{mark}"


def _content(path: Path) -> bytes | memoryview:
    """The bytes, unpacked; of a large file a view, so that memory stays flat."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.decompress(path.read_bytes())
    return map_file(path) if path.stat().st_size >= _MAP_FROM else path.read_bytes()


def _is_nifti(content: bytes | memoryview) -> bool:
    return content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0"


def _nifti_start(content: bytes | memoryview) -> tuple[int, bytes]:
    """Where the voxels begin, and all before them."""
    order = "<" if struct.unpack("<i", content[:4])[0] in _NIFTI_SIZES else ">"
    version_1 = struct.unpack(order + "i", content[:4])[0] == 348
    form, place = ("f", 108) if version_1 else ("q", 168)
    start = int(struct.unpack_from(order + form, content, place)[0])
    return start, bytes(content[:start])


def _hdf5_print(path: Path) -> str:
    with open_hdf5(path) as file:
        if "kspace" in file:
            part = np.asarray(file["kspace"][0])
            return "kspace" + hashlib.sha256(part.tobytes()).hexdigest()
        group = next(item for item in file.values() if hasattr(item, "keys") and "data" in item)
        rows = group["data"][:4]
        return "mrd" + hashlib.sha256(b"".join(r.tobytes() for r in rows["data"])).hexdigest()


def _sidecar_print(path: Path) -> str:
    for suffix in (".nii.gz", ".nii"):
        image = path.with_name(path.name.removesuffix(".json") + suffix)
        if image.is_file():
            return "sidecar" + _fingerprint(image)[1]
    return ""


def _check_all(task: tuple[tuple[str, tuple[str, ...], str], ...]) -> list[Checked]:
    return [_check(Path(output), originals, Path(out)) for output, originals, out in task]


def _check(output: Path, originals: tuple[str, ...], out: Path) -> Checked:
    """Of originals that look the same, as copies do, one must be the source: all are searched."""
    name = output.relative_to(out).as_posix() if output != out else output.name
    findings: set[Finding] = set()
    for original in originals:
        try:
            findings.update(check_pair(Path(original), output))
            texts = [w for w in words(Path(original).stem) if len(w) > 3 and not is_technical(w)]
            told = "/".join(part for part in name.split("/") if not _KEYED_UID.fullmatch(part))
            findings.update(find_text(told.encode(), "file name", texts=texts))
            if not set(texts).isdisjoint(words(name)):
                findings.add(Finding("file name", "text"))
        except (DataError, OSError, ValueError, EOFError, struct.error, zlib.error):
            findings.add(Finding("file", "unreadable"))
    return Checked(name, sorted(findings), bool(originals))


def check_pair(original: Path, output: Path) -> list[Finding]:
    """What of `original` identifies and is in `output`.

    Raises:
        DataError: As the readers of the formats.
    """
    old, new = _content(original), _content(output)
    if new[:8] == b"\x89HDF\r\n\x1a\n":
        return _check_hdf5(original, output)
    if output.suffix == ".json":
        return _check_sidecar(bytes(old), bytes(new))
    if _is_nifti(new):
        texts = [run.decode("ascii") for run in _nifti_texts(_nifti_start(old)[1])]
        head = _nifti_start(new)[1]
        findings = find_text(head, "header", texts=texts)
        packed = output.read_bytes()[:256]
        if packed[:2] == b"\x1f\x8b" and (packed[3] or any(packed[4:8])):
            findings.append(Finding("gzip", "name or time"))
        return findings
    return find_leaks(old, new)


def _nifti_texts(head: bytes) -> Iterator[bytes]:
    """Runs of text in the fields that hold text, and in the extensions."""
    version_1 = head[344:348] == b"n+1\0"
    fields = ((4, 32), (148, 252), (328, 344)) if version_1 else ((240, 344), (508, 540))
    size = 348 if version_1 else 540
    for start, end in (*fields, (size, len(head))):
        yield from re.findall(rb"[\x20-\x7e]{4,}", head[start:end])


def _check_audit(path: Path) -> list[Finding]:
    """An audit may hold keyed ids, counts and words of a closed list, and nothing else."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if number == 0:
            continue
        strings = [value for name, value in record.items() if name != "actions"]
        for value in _strings(strings):
            if not _AUDITED.fullmatch(value):
                return [Finding("audit", "text")]
    return []


def _check_sidecar(old: bytes, new: bytes) -> list[Finding]:
    texts: list[str] = []
    options = frozenset({"patient_characteristics", "modified_dates", "descriptors"})
    for name, value in json.loads(old).items():
        tag = tag_of(name)
        if tag is not None and may_stay(tag, options):
            continue
        texts += [part for part in _strings(value) if part]
    return find_text(new, "sidecar", texts=texts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)


def _check_hdf5(original: Path, output: Path) -> list[Finding]:
    texts = list(_hdf5_texts(original, all_of_it=False))
    together = "\n".join(_hdf5_texts(output, all_of_it=True)).encode()
    return find_text(together, "header", texts=texts)


def _hdf5_texts(path: Path, *, all_of_it: bool) -> Iterator[str]:
    """Names, attributes and text of a file; of its XML, without what may be as it was."""
    found: list[str] = []
    with open_hdf5(path) as file:

        def visit(_name: str, item: Any) -> None:
            values = (_text(value) for value in item.attrs.values())
            found.extend(text for text in values if text not in ACQUISITIONS)
            if hasattr(item, "dtype") and item.dtype.kind in "OS" and item.size < 64:
                value = item[()]
                for part in np.asarray(value, dtype=object).ravel():
                    text = _text(part)
                    found.extend(
                        _xml_texts(text, all_of_it) if text.lstrip()[:1] == "<" else [text]
                    )

        visit("", file)
        file.visititems(visit)
    yield from found


def _xml_texts(xml: str, all_of_it: bool) -> Iterator[str]:
    if all_of_it:
        yield xml
        return
    for element in ElementTree.fromstring(xml.encode()).iter():
        name = element.tag.rpartition("}")[2]
        text = (element.text or "").strip()
        if text and name not in _SAME_TEXT and not re.fullmatch(r"[-+.\deE]+", text):
            yield text
    yield from re.findall(r"<[^>]*date>([^<]+)<", xml)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
