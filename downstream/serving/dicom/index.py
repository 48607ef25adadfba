"""What stands in DICOM results, as JSON beside them, so that the service itself parses no DICOM.

Written by the process of a job for each result with DICOM objects: their elements without pixels in
the DICOM JSON model (PS3.18 Annex F), where their frames lie, and how they are encoded.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.files.dicom_frames import quiet_pydicom
from core_mri.runs import write_atomically

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

INDEXED = ("images.zip", "dicom.zip", "mask.dcm")
"""Results with DICOM objects."""
_LONGEST = 1024
"""Bytes of a binary element that is told; longer ones are in the object alone."""
_PIXEL_GROUP = 0x7FE0


def index_name(name: str) -> str:
    """Of the index of a result."""
    return f"{name}.index.json.gz"


def write_indexes(folder: Path) -> None:
    """Write the index of each DICOM result in `folder`."""
    for name in INDEXED:
        if (folder / name).exists():
            found = [_described(member, content) for member, content in _objects(folder / name)]
            content = gzip.compress(json.dumps(found).encode(), 6, mtime=0)
            write_atomically(folder / index_name(name), content)


def _objects(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix != ".zip":
        yield "", path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            yield name, archive.read(name)


def _described(member: str, content: bytes) -> dict[str, Any]:
    import pydicom

    with quiet_pydicom():
        dataset = pydicom.dcmread(io.BytesIO(content))
        frames = _frames(dataset, content)
        for element in list(dataset):
            long = element.VR in ("OB", "OW", "OF", "OD", "OL", "OV", "UN") and (
                element.value is not None and len(element.value) > _LONGEST
            )
            if element.tag.group == _PIXEL_GROUP or long:
                del dataset[element.tag]
        tags = dataset.to_json_dict(suppress_invalid_tags=True)
    return {
        "member": member,
        "syntax": str(dataset.file_meta.TransferSyntaxUID),
        "frames": frames,
        "tags": tags,
    }


def _frames(dataset: FileDataset, content: bytes) -> list[list[tuple[int, int]]]:
    """Where each frame lies: offsets and lengths of its fragments in the file.

    None where frames do not begin on a byte, or cannot be told apart.
    """
    element = dataset.get_item("PixelData") if "PixelData" in dataset else None
    start = getattr(element, "value_tell", 0)
    number = int(dataset.get("NumberOfFrames", 1) or 1)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not start or syntax.is_deflated:
        return []
    if syntax.is_encapsulated:
        return _fragments(content, start, number)
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    if bits % 8:
        return []
    return [[(start + n * bits // 8, bits // 8)] for n in range(number)]


def _fragments(content: bytes, start: int, number: int) -> list[list[tuple[int, int]]]:
    """Of encapsulated pixels (PS3.5 A.4).

    A fragment for each frame, all fragments for one frame, else as the table of offsets says.
    """
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    stream = io.BytesIO(content)
    stream.seek(start)
    try:
        offsets = parse_basic_offsets(stream)
        first = stream.tell()
        _, items = parse_fragments(stream)
    except (ValueError, struct.error):  # encapsulated in a way that only its decoder knows
        return []
    if len(items) == number:
        begins = items
    elif number == 1:
        begins = items[:1]
    elif len(offsets) == number:
        begins = [first + offset for offset in offsets]
    else:
        return []
    ends = [*begins[1:], len(content)]
    return [
        [
            (item + 8, int.from_bytes(content[item + 4 : item + 8], "little"))
            for item in items
            if begin <= item < end
        ]
        for begin, end in zip(begins, ends, strict=True)
    ]
