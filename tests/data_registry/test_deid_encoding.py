"""DICOM bytes taken apart and put together: values as pydicom reads them, files as they were."""

from __future__ import annotations

import io
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset

from core_mri.errors import DataError
from data_registry.deidentify.encoding import (
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    MAX_DEPTH,
    Element,
    Encoding,
    Parsed,
    header_of,
    item_of,
    parse,
)
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.profile import PROFILES
from tests.data_registry.deid_corpus.generate import corpus

FILES = sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"))


def readable() -> list[tuple[str, bytes]]:
    """Files of pydicom that pydicom itself reads without help, and planted ones of every syntax."""
    kinds = ("classic", "enhanced", "mosaic", "segmentation")
    found = [(file.kind, file.content) for file in corpus(90, 3) if file.kind in kinds]
    for path in FILES:
        content = path.read_bytes()
        try:
            parse(content)
        except DataError:
            continue
        found.append((path.name, content))
    return found


def leaves(
    parsed: Parsed, elements: list[Element], place: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    for element in elements:
        here = (*place, element.tag)
        if element.items is None:
            yield here, bytes(parsed.content[element.value : element.end])
            continue
        for number, item in enumerate(element.items):
            yield from leaves(parsed, item, (*here, number))


def expected(dataset: Dataset, place: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for element in dataset:
        here = (*place, int(element.tag))
        if element.VR != "SQ":
            yield here
            continue
        for number, item in enumerate(element.value):
            yield from expected(item, (*here, number))


def written(parsed: Parsed, elements: list[Element], encoding: Encoding) -> bytes:
    """All elements put together from their parts; sequences get a defined length."""
    parts = []
    for element in elements:
        if element.items is None:
            parts.append(bytes(parsed.content[element.start : element.end]))
            continue
        inner = IMPLICIT_LITTLE if element.vr == b"UN" else encoding
        value = b"".join(item_of(written(parsed, item, inner), inner) for item in element.items)
        if element.vr == b"UN":
            value += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        length = 0xFFFFFFFF if element.vr == b"UN" else len(value)
        parts.append(header_of(element.tag, element.vr, length, encoding) + value)
    return b"".join(parts)


def test_every_value_where_pydicom_finds_it() -> None:
    compared = 0
    for name, content in readable():
        parsed = parse(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(io.BytesIO(content), force=True)
                wanted = sorted(expected(dataset))
            except Exception:  # damaged for pydicom
                continue
        got = sorted(place for place, _ in leaves(parsed, parsed.elements))
        assert got == wanted, name
        compared += 1
    assert compared > 60


def test_put_together_it_reads_the_same() -> None:
    for name, content in readable():
        parsed = parse(content)
        if parsed.syntax == "1.2.840.10008.1.2.1.99":
            continue
        start = parsed.elements[0].start
        again = content[:start] + written(parsed, parsed.elements, parsed.encoding)
        twice = parse(again)
        assert list(leaves(twice, twice.elements)) == list(leaves(parsed, parsed.elements)), name


def test_first_bytes_tell_what_is_no_dicom() -> None:
    for content in (b"", b"hello" * 50, bytes(200), b"\x89PNG" + bytes(300)):
        with pytest.raises(DataError) as caught:
            parse(content)
        assert caught.value.code in ("DATA-02", "DATA-03")


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 0.8, 0.999])
def test_cut_off(keep: float) -> None:
    """A cut between two elements before Rows leaves a whole data set; two bytes less do not."""
    codes: Counter[str] = Counter()
    for _, content in readable()[:12]:
        for end in (int(len(content) * keep), int(len(content) * keep) - 2):
            try:
                deidentify_dicom(content[:end], bytes(32), PROFILES["basic"])
            except DataError as error:
                codes[error.code] += 1
            else:
                codes["passed"] += 1
    assert codes["passed"] <= 1, codes
    assert set(codes) <= {"DATA-02", "DATA-10", "passed"}


def _nested(depth: int) -> bytes:
    value = header_of(0x00180081, b"DS", 2, EXPLICIT_LITTLE) + b"1 "
    for _ in range(depth):
        item = item_of(value, EXPLICIT_LITTLE)
        value = header_of(0x00082112, b"SQ", len(item), EXPLICIT_LITTLE) + item
    return bytes(128) + b"DICM" + value


def test_depth_is_bounded() -> None:
    assert parse(_nested(MAX_DEPTH)).elements
    with pytest.raises(DataError, match="nested deeper"):
        parse(_nested(MAX_DEPTH + 1))
    with pytest.raises(DataError):
        parse(_nested(2000))


def test_lengths_that_do_not_fit_become_un() -> None:
    head = header_of(0x00080104, b"LO", 70_000, EXPLICIT_LITTLE)
    assert head == struct.pack("<HH2sHL", 8, 0x104, b"UN", 0, 70_000)


def test_unknown_sequences_are_read_in_implicit_vr() -> None:
    """PS3.5 6.2.2 note 4: UN of undefined length holds items in implicit VR little endian."""
    inner = header_of(0x00100010, b"PN", 4, IMPLICIT_LITTLE) + b"A^B "
    value = item_of(inner, IMPLICIT_LITTLE) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    head = struct.pack("<HH2sHL", 0x0029, 0x1001, b"UN", 0, 0xFFFFFFFF)
    parsed = parse(bytes(128) + b"DICM" + head + value)
    ((element,),) = parsed.elements[0].items or []
    assert element.tag == 0x00100010
