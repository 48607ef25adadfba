"""One DICOM file to its de-identified form: PS3.15 Annex E at every depth, pixel bytes untouched.

The bytes of the file are walked once to find its elements, once for the words that must not stay,
and once to write the output: runs of kept elements are copied as they are.
"""

from __future__ import annotations

import mmap
import re
import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from core_mri.errors import DataError
from data_registry.deidentify import recording, treatments
from data_registry.deidentify.charsets import ASCII, decode
from data_registry.deidentify.encoding import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    IMPLICIT_LITTLE,
    PIXEL_TAGS,
    Buffer,
    Element,
    Encoding,
    Parsed,
    header_of,
    is_uncompressed,
    item_of,
    parse,
    text,
)
from data_registry.deidentify.identifiers import keyed_uid
from data_registry.deidentify.private_tags import treat_private
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.rules import (
    CODE_VALUE,
    SCHEME,
    TEXT_VRS,
    Mode,
    find_rule,
    is_damaged,
    rules_of,
)
from data_registry.deidentify.scope import Extra, extra_of
from data_registry.deidentify.seeds import codecs_of, seeds_of, subject_of
from data_registry.deidentify.subject import Subject
from data_registry.deidentify.treatments import Place

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_PATIENT_ID, _ISSUER, _BURNED_IN = 0x00100020, 0x00100021, 0x00280301
_DOCUMENT = 0x00420011
_ROWS, _COLUMNS, _SAMPLES, _FRAMES, _BITS, _PHOTOMETRIC = (
    0x00280010, 0x00280011, 0x00280002, 0x00280008, 0x00280100, 0x00280004,
)  # fmt: skip
_SHAPE_TAGS = frozenset((_ROWS, _COLUMNS, _SAMPLES, _FRAMES, _BITS, _PHOTOMETRIC))
_UID = re.compile(r"\d+(\.\d+){1,31}")
_PIXEL_GROUP = 0x7FE00000
_OVERLAY_DATA = 0x60003000
_TRAILING_PADDING = 0xFFFCFFFC
_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Clean:
    """A de-identified file.

    Args:
        header: Its bytes up to the value of the pixel data; all, when there are none.
        pixels: The bytes from there on, a view of the input.
        source_header: The bytes of the input before its pixel data.
        patient, study, series, instance: New identifiers.
        old_patient, old_uids: What they were; for maps that the user asks for, never for logs.
        counts: Attributes by action: K kept, C cleaned, D dummy, Z emptied, X removed, U new UID.
        removed: Words that cleaning took out of descriptions.
        sealed: The input was our own output and is passed on unchanged.
    """

    header: bytes
    pixels: Buffer
    source_header: Buffer = field(repr=False)
    patient: str
    study: str
    series: str
    instance: str
    old_patient: str
    old_uids: dict[str, str] = field(repr=False)
    counts: Counter[str]
    removed: list[str] = field(repr=False)
    sealed: bool = False

    @property
    def content(self) -> bytes:
        """The whole file."""
        return self.header + bytes(self.pixels)


def deidentify_dicom(
    file: Buffer,
    key: bytes,
    profile: Profile,
    *,
    pixels_clean: bool = False,
    face_removed: bool = False,
    extras: Collection[Extra] = (),
) -> Clean:
    """De-identify one DICOM file.

    Args:
        file: All its bytes; they are not changed.
        key: Project key.
        profile: What to do.
        pixels_clean: Somebody read the pixels, and they show no text.
        face_removed: It is a head, and its face was taken away.
        extras: Kinds of objects that are no scans and may go out. Nobody reads an encapsulated
            document: its file says Patient Identity Removed NO.

    Raises:
        DataError: As :func:`parse`; DATA-02 also when the UID of object, series or study is
            missing, pixels are missing that the header states, or text has an undeclared character
            set; DATA-15 for a DICOMDIR; DATA-16 for an image that shows text, or may; DATA-18 for
            objects that are no scans.
    """
    if isinstance(file, memoryview):  # slices of a map are bytes, those of its view are not
        file = file.obj if isinstance(file.obj, mmap.mmap) else bytes(file)  # type: ignore[assignment]
    parsed = parse(file)
    top = {element.tag: element for element in reversed(parsed.elements)}

    def value(tag: int) -> str:
        return text(parsed.content, top[tag]) if tag in top else ""

    extra = extra_of(value(_SOP_CLASS))
    may_show_text = value(_BURNED_IN) == "YES" or extra == "captures"
    _refuse(parsed, top, value(_SOP_CLASS))
    if extra is not None and extra not in extras:
        raise DataError("DATA-18", f"one of the {extra}, which are no scans.")
    if _DOCUMENT in top and extra != "documents":
        raise DataError("DATA-10", "a document inside an object that is none.")
    if may_show_text and not pixels_clean:
        raise DataError("DATA-16", "the pixels show text, or may.")
    uids = [value(tag) for tag in (_SOP_INSTANCE, _SERIES, _STUDY)]
    first_pixel = next((e.value for e in parsed.elements if e.tag in PIXEL_TAGS), len(file))
    source_header = file[: first_pixel if parsed.content is file else len(file)]
    if recording.METHOD in top and recording.is_sealed(parsed, file, key):
        instance, series, study = uids
        patient = value(_PATIENT_ID)
        return Clean(
            bytes(source_header), memoryview(file)[len(source_header) :], source_header,
            patient, study, series, instance, "", {}, Counter(), [], sealed=True,
        )  # fmt: skip
    subject = subject_of(parsed, value(_PATIENT_ID), value(_ISSUER), uids[2], key)
    writer = _Writer(parsed.content, subject, profile, value(_SOP_CLASS))
    ours = recording.recorded(
        profile,
        subject.name,
        parsed.encoding,
        pixels_clean=pixels_clean,
        face_removed=face_removed,
        document_inside=_DOCUMENT in top,
    )
    if _DOCUMENT in top:
        inside = top[_DOCUMENT]
        content = bytes(parsed.content[inside.value : inside.end])
        ours.append((_DOCUMENT, recording.element(_DOCUMENT, b"OB", content, parsed.encoding)))
    body = writer.data_set(parsed.elements, parsed.encoding, ours)
    instance, series, study = (_new_uid(key, uid, profile) for uid in uids)
    syntax = parsed.syntax or _syntax_of(parsed.encoding)
    start = recording.file_meta(value(_SOP_CLASS), instance, syntax)
    header, pixels = _with_pixels(parsed, start + body)
    header = recording.sealed(header, key)
    if syntax == DEFLATED:
        header, pixels = start + _deflated(header[len(start) :] + bytes(pixels)), b""
    return Clean(
        header,
        pixels,
        source_header,
        subject.name,
        study,
        series,
        instance,
        value(_PATIENT_ID),
        dict(zip(uids, (instance, series, study), strict=True)),
        writer.counts,
        writer.removed,
    )


def identifying_texts(file: Buffer) -> list[str]:
    """Names, numbers and places of a file, and its dates as they may be shown in the pixels."""
    parsed = parse(file)
    codecs = codecs_of(parsed.content, parsed.elements, ASCII)
    found = []
    for kind, value, terms in seeds_of(parsed.content, parsed.elements, codecs):
        shown = decode(value, terms)
        found.append(shown)
        if kind == "date" and len(shown) == 8:
            year, month, day = shown[:4], shown[4:6], shown[6:]
            found += [f"{day}{month}{year}", f"{month}{day}{year}", year]
    return found


def _new_uid(key: bytes, uid: str, profile: Profile) -> str:
    """Of instance, series or study, which also name the output."""
    if "uids" not in profile.options:
        return keyed_uid(key, uid)
    if not _UID.fullmatch(uid):
        raise DataError("DATA-02", "a UID that is none, and would become a name.")
    return uid


def _refuse(parsed: Parsed, top: dict[int, Element], sop_class: str) -> None:
    """What cannot be de-identified by its header."""
    if sop_class == _DIRECTORY or (parsed.meta and 0x00041220 in top):
        raise DataError("DATA-15", "a DICOMDIR: it indexes the names of the original files.")
    missing = [
        name
        for tag, name in (
            (_SOP_CLASS, "SOPClassUID"),
            (_SOP_INSTANCE, "SOPInstanceUID"),
            (_SERIES, "SeriesInstanceUID"),
            (_STUDY, "StudyInstanceUID"),
        )
        if tag not in top or top[tag].value == top[tag].end
    ]
    if missing:
        raise DataError("DATA-02", f"the header lacks {', '.join(missing)}.")
    if _ROWS in top and PIXEL_TAGS.isdisjoint(top):
        raise DataError("DATA-10", "no pixel data, though the header describes an image.")
    if any(parsed.content[len(parsed.content) - parsed.rest :]):
        raise DataError("DATA-02", "bytes that are no element follow the data set.")
    for element in parsed.elements:
        if is_damaged(element.tag, element.vr):
            raise DataError("DATA-02", f"attribute {element.tag:08X} has a wrong VR.")


def _syntax_of(encoding: Encoding) -> str:
    if not encoding.explicit:
        return IMPLICIT
    return "1.2.840.10008.1.2.1" if encoding.little else BIG_ENDIAN


def _deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflater.compress(data) + deflater.flush()
    return packed + b"\0" * (len(packed) & 1)


def _with_pixels(parsed: Parsed, header: bytes) -> tuple[bytes, Buffer]:
    """The header with the head of the pixel element, and the bytes of its value.

    Bytes behind the last pixel are cut off: they are not shown, and may hold anything.

    Raises:
        DataError: DATA-02 when there are fewer bytes than the header states.
    """
    group = [e for e in parsed.elements if e.tag >= _PIXEL_GROUP and e.tag != _TRAILING_PADDING]
    pixels = next((element for element in group if element.tag in PIXEL_TAGS), None)
    tables = [e for e in group if e.tag in (0x7FE00001, 0x7FE00002)]
    header += b"".join(bytes(parsed.content[e.start : e.end]) for e in tables)
    if pixels is None:
        return header, b""
    length = pixels.end - pixels.value
    if not pixels.fragments and is_uncompressed(parsed.syntax):
        expected = _expected_length(parsed)
        if expected is not None:
            if length < expected:
                raise DataError("DATA-02", "fewer pixel data than the header says.")
            length = min(length, expected + (expected & 1))
    if pixels.fragments:
        head = bytes(parsed.content[pixels.start : pixels.value])
    else:
        head = header_of(pixels.tag, pixels.vr, length, parsed.encoding)
    view = memoryview(parsed.content)[pixels.value : pixels.value + length]
    return header + head, view


def _expected_length(parsed: Parsed) -> int | None:
    """Bytes of native pixel data (PS3.5 8.1.1); None where the header does not say."""
    order = "little" if parsed.encoding.little else "big"
    found: dict[int, int] = {}
    for element in parsed.elements:
        if element.tag not in _SHAPE_TAGS:
            continue
        raw = bytes(parsed.content[element.value : element.end])
        if element.tag == _PHOTOMETRIC:
            if raw.strip(b" \0") in (b"YBR_FULL_422", b"YBR_PARTIAL_422", b"YBR_PARTIAL_420"):
                return None
        elif element.tag == _FRAMES:
            digits = raw.strip(b" \0")
            found[_FRAMES] = int(digits) if digits.isdigit() else 1
        elif len(raw) == 2:
            found[element.tag] = int.from_bytes(raw, order)  # type: ignore[arg-type]
    try:
        pixels = found[_ROWS] * found[_COLUMNS] * found.get(_SAMPLES, 1) * found.get(_FRAMES, 1)
        bits = pixels * found[_BITS]
    except KeyError:
        return None
    return (bits + 7) // 8


class _Writer:
    """Writes the elements of a data set under the rules of a profile."""

    def __init__(self, content: Buffer, subject: Subject, profile: Profile, sop_class: str) -> None:
        self.counts: Counter[str] = Counter()
        self.removed: list[str] = []
        self._content = content
        self._subject = subject
        self._profile = profile
        self._sop_class = sop_class

    def data_set(
        self, elements: list[Element], encoding: Encoding, ours: list[tuple[int, bytes]]
    ) -> bytes:
        """All elements before the pixel data, with `ours` in their places."""
        parts: list[bytes] = []
        cuts = [tag for tag, _ in ours]
        # An overlay without its bitmap, which goes, would be no valid overlay.
        overlays = {e.tag >> 16 for e in elements if e.tag & 0xFF00FFFF == _OVERLAY_DATA}
        written = recording.RECORDED.union(tag for tag, _ in ours)
        rest = [
            e
            for e in elements
            if e.tag not in written and e.tag < _PIXEL_GROUP and e.tag >> 16 not in overlays
        ]
        rest.sort(key=_tag)
        start = 0
        codecs = codecs_of(self._content, rest, ASCII)
        for cut, (_, own) in zip(cuts, ours, strict=True):
            end = start
            while end < len(rest) and rest[end].tag < cut:
                end += 1
            parts += (self._level(rest[start:end], 0, "clean", codecs, encoding), own)
            start = end
        parts.append(self._level(rest[start:], 0, "clean", codecs, encoding))
        self.counts["D"] += 2  # name and number of the patient
        self.counts["X"] += sum(e.tag >= 0xFFFA0000 or e.tag >> 16 in overlays for e in elements)
        return b"".join(parts)

    def _level(
        self,
        elements: list[Element],
        within: int,
        mode: Mode,
        codecs: tuple[str, ...],
        encoding: Encoding,
    ) -> bytes:
        """One data set or item, or a part of it."""
        content, counts = self._content, self.counts
        keep, remove = treatments.keep, treatments.remove
        rules = rules_of(self._profile, self._sop_class, within, mode)
        place = Place(self._subject, codecs, None, self.removed)
        parts: list[bytes] = []
        run = run_end = -1
        index, count = 0, len(elements)
        while index < count:
            element = elements[index]
            tag, vr, start, at, end, items, _ = element
            index += 1
            if tag & 0x10000:
                block = index - 1
                while index < count and elements[index].tag >> 16 == tag >> 16:
                    index += 1
                if run >= 0:
                    parts.append(content[run:run_end])  # type: ignore[arg-type]
                    run = run_end = -1
                parts.append(self._private(elements[block:index], place, encoding))
                continue
            rule = rules.get((tag, vr))
            if rule is None:
                rule = rules[tag, vr] = find_rule(
                    self._profile, self._sop_class, within, mode, tag, vr
                )
            treat = rule.treat
            if treat is remove:
                counts["X"] += 1
                continue
            if items is not None:
                counts[rule.action] += 1
                inner = IMPLICIT_LITTLE if vr == b"UN" else encoding
                value: bytes | None = (
                    self._items(items, tag, rule.mode, codecs, inner) if treat is keep else b""
                )
                same = False
            else:
                old = content[at:end]
                if tag == CODE_VALUE:
                    place.scheme = self._scheme(elements, codecs)
                if vr in TEXT_VRS and not codecs and not old.isascii():  # type: ignore[union-attr]
                    raise DataError("DATA-02", "text with an undeclared character set.")
                value = old if treat is keep or at == end else treat(place, old)  # type: ignore[arg-type, assignment]
                same = value is old
                counts["X" if value is None else rule.action] += 1
            if same:
                if start == run_end:
                    run_end = end
                    continue
                if run >= 0:
                    parts.append(content[run:run_end])  # type: ignore[arg-type]
                run, run_end = start, end
                continue
            if run >= 0:
                parts.append(content[run:run_end])  # type: ignore[arg-type]
                run = run_end = -1
            if value is not None:
                parts.append(recording.element(tag, vr, value, encoding))
        if run >= 0:
            parts.append(content[run:run_end])  # type: ignore[arg-type]
        return b"".join(parts)

    def _items(
        self,
        items: list[list[Element]],
        tag: int,
        mode: Mode,
        codecs: tuple[str, ...],
        encoding: Encoding,
    ) -> bytes:
        return b"".join(
            item_of(
                self._level(item, tag, mode, codecs_of(self._content, item, codecs), encoding),
                encoding,
            )
            for item in items
        )

    def _scheme(self, elements: list[Element], codecs: tuple[str, ...]) -> str | None:
        """Coding Scheme Designator of an item; it stands behind the code that it is asked for."""
        for element in elements:
            if element.tag == SCHEME:
                return decode(bytes(self._content[element.value : element.end]), codecs)
        return None

    def _private(self, elements: list[Element], place: Place, encoding: Encoding) -> bytes:
        """What may stay of a private group, with the creators of the blocks that stay."""
        if "safe_private" not in self._profile.options:
            self.counts["X"] += len(elements)
            return b""
        content = self._content
        creators: dict[int, Element] = {}
        used: dict[int, bytes] = {}
        kept: list[bytes] = []
        for element in elements:
            number = element.tag & 0xFFFF
            if 0x10 <= number <= 0xFF:
                creators[number] = element
                continue
            creator = creators.get(number >> 8)
            value = None
            if creator is not None and element.items is None:
                name = text(content, creator)
                old = bytes(content[element.value : element.end])
                value = treat_private(place, name, element.tag, element.vr, old)
            if value is None:
                self.counts["X"] += 1
                continue
            self.counts["C"] += 1
            assert creator is not None
            used[number >> 8] = recording.element(creator.tag, creator.vr, name.encode(), encoding)
            kept.append(recording.element(element.tag, element.vr, value, encoding))
        self.counts["X"] += len(creators) - len(used)
        return b"".join([*(used[block] for block in sorted(used)), *kept])


def _tag(element: Element) -> int:
    return element.tag
