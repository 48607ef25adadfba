"""One file of any known kind to its de-identified form, verified; runs in worker processes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from core_mri.errors import CoreMRIError, DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES
from data_registry.deidentify import headers, heads, verify
from data_registry.deidentify.audit import AUDIT_START, WAITING
from data_registry.deidentify.encoding import PIXEL_TAGS, Buffer, parse, text
from data_registry.deidentify.identifiers import file_id, pseudonym
from data_registry.deidentify.mapped import map_file, pieces
from data_registry.deidentify.outcome import (
    Outcome,
    Passed,
    PrivateDetails,
    Result,
    Status,
    content_id,
    whole_id,
)
from data_registry.deidentify.pixels import Looks, PixelVerdict
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.scope import DEFAULT, Scope, is_asked_for
from data_registry.vocabulary import words

_DAMAGE = (ValueError, LookupError, ArithmeticError, RecursionError, EOFError)
"""What readers raise on damaged files beside their own errors: it costs the file, not the batch."""
_LEFT_OUT = ("DATA-15", "DATA-18")
"""Indices, and what was not asked for: nothing is wrong with them."""
_SOP_CLASS = 0x00080016
_MAP_FROM = 1 << 24
"""Bytes from which on a file is mapped into memory rather than read."""


@dataclass(frozen=True)
class Task:
    """Files that one worker does one after another.

    Args:
        files: Keyed id, path and stamp of each.
        root: Of the input; names below it may tell whose a file is.
        out: Output folder; None to write nothing (dry run).
        key: Project key.
        profile: What to do.
        scope: What to do beside the header.
        own: Of an input that is an earlier output: path below it -> kind and keyed hash.
        looks: What pixels and faces of the DICOM images among them show.
        passed: Path -> codes for which a person has passed the file.
        face_pictures: Folder for pictures of heads that are no DICOM.
    """

    files: tuple[tuple[str, str, str], ...]
    root: str
    out: str | None
    key: bytes
    profile: Profile
    scope: Scope = DEFAULT
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)
    passed: Passed = field(default_factory=dict)
    face_pictures: Path | None = None


Done = tuple[Outcome, PrivateDetails]


@dataclass(frozen=True)
class Product:
    """What a kind of file became.

    Args:
        kind: dicom, nifti, sidecar, fastmri or ismrmrd.
        output: Path below the output folder.
        findings: Of the verifier.
        source, result: Keyed hashes.
        actions, removed, patient, uids, face: As in `Outcome` and `PrivateDetails`.
    """

    kind: str
    output: str
    findings: list[verify.Finding]
    source: str
    result: str
    actions: dict[str, int]
    removed: tuple[str, ...] = ()
    patient: tuple[str, str] = ("", "")
    uids: dict[str, str] | None = None
    face: dict[str, float] = field(default_factory=dict)


def work(task: Task) -> list[Done]:
    """De-identify the files of a task; each finished one waits in OUT/.partial under its id."""
    done = []
    for identity, path, stamp in task.files:
        outcome, details = _one(task, identity, path, stamp)
        done.append((_with_looks(task, path, outcome), details))
    return done


def _with_looks(task: Task, path: str, outcome: Outcome) -> Outcome:
    """The outcome of a DICOM image with what was seen of its series."""
    series = task.looks.series.get(path)
    if series is None:
        return outcome
    seen = (task.looks.pixels or {}).get(path, PixelVerdict())
    face = (task.looks.faces or {}).get(path)
    return replace(
        outcome,
        texts=_text_hashes(task.key, seen),
        group=pseudonym(task.key, "review", series),
        face=face.fit.to_mapping() if face is not None and face.fit is not None else {},
    )


def _text_hashes(key: bytes, verdict: PixelVerdict) -> list[str]:
    """Keyed, each once: what was read in the pixels is told to nobody."""
    texts = {" ".join(words(text)) for rows in verdict.boxes.values() for _, text in rows}
    return sorted(pseudonym(key, "text", text) for text in texts)


def single(task: Task) -> list[Task]:
    """A task of several files as tasks of one."""
    return [replace(task, files=(file,)) for file in task.files]


def _one(task: Task, identity: str, path: str, stamp: str) -> Done:
    waiting = None if task.out is None else f"{task.out}/{WAITING}/{identity}"
    try:
        product = _product(task, path, waiting)
    except CoreMRIError as error:
        if error.code == "DATA-07":
            raise
        _forget(waiting)
        status: Status = "left out" if error.code in _LEFT_OUT else "quarantined"
        return Outcome(identity, stamp, status, code=error.code), PrivateDetails(error.message)
    except _DAMAGE as error:
        _forget(waiting)
        message = f"damaged ({type(error).__name__})."
        return Outcome(identity, stamp, "quarantined", code="DATA-02"), PrivateDetails(message)
    details = PrivateDetails("", product.removed, product.patient, product.uids or {})
    if product.findings:
        _forget(waiting)
        found = [f"{finding.where} {finding.kind}" for finding in product.findings]
        outcome = Outcome(
            identity, stamp, "quarantined", product.kind, "DATA-11", verdict="vetoed", found=found
        )
        return outcome, PrivateDetails("the verifier found an identifier: " + ", ".join(found))
    outcome = Outcome(
        identity,
        stamp,
        "done",
        product.kind,
        output=product.output,
        source=product.source,
        result=product.result,
        actions=dict(sorted(product.actions.items())),
        words_removed=len(product.removed),
        verdict="passed",
        face=product.face,
    )
    return outcome, details


def _product(task: Task, path: str, waiting: str | None) -> Product:
    """Told by what the file holds, not by its name.

    Raises:
        DataError: DATA-02 when it cannot be read, DATA-03 for a format that no rule covers, DATA-13
            for a symbolic link; and what the rules of its kind raise.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise DataError("DATA-13", "a symbolic link; give the folder that it points into.")
        if not stat.S_ISREG(status.st_mode):
            raise DataError("DATA-03", "no regular file.")
        if status.st_size < _MAP_FROM:
            with Path(path).open("rb", buffering=0) as stream:
                file: Buffer = stream.readall()
        else:
            file = map_file(Path(path))
    except OSError as error:
        raise DataError("DATA-02", f"cannot be read ({error.strerror}).") from None
    head = bytes(file[:540])
    kind = _kind(path, head)
    if kind is None and head[:2] == b"\x1f\x8b":
        kind, file = _dicom, _unpacked(file)
    if head.startswith(AUDIT_START):
        raise DataError("DATA-15", "the audit of an earlier output.")
    if kind is None:
        raise DataError(
            "DATA-03",
            "a format that no rule of de-identification covers; there are DICOM, NIfTI, BIDS "
            "sidecars, ISMRMRD and fastMRI.",
        )
    own = _own(task, path, waiting) if task.own and kind is not _dicom else None
    return own or kind(task, path, waiting, file)


def _unpacked(file: Buffer) -> bytes:
    """A DICOM file in a gzip wrapper.

    Raises:
        DataError: DATA-03 for any other packed file, DATA-13 when it unpacks to far more than its
            size allows.
    """
    most = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * len(file))
    try:
        with gzip.open(io.BytesIO(file)) as packed:
            if packed.read(132)[128:] != b"DICM":
                raise DataError("DATA-03", "a packed file that is neither DICOM nor NIfTI.")
            packed.seek(0)
            content = packed.read(most + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError("DATA-02", "a damaged gzip file.") from None
    if len(content) > most:
        raise DataError("DATA-13", "it unpacks to far more than its size allows.")
    return content


def _kind(path: str, head: bytes) -> Callable[[Task, str, str | None, Buffer], Product] | None:
    if head[128:132] == b"DICM" or head[:4] == b"\2\0\0\0" or head[:2] in (b"\x08\0", b"\0\x08"):
        return _dicom
    if _is_nifti(path, head):
        return _nifti
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return _raw_data
    if path.endswith(".json"):
        stem = path.removesuffix(".json")
        if any(Path(stem + suffix).is_file() for suffix in (".nii.gz", ".nii")):
            return _sidecar
    return None


def _dicom(task: Task, path: str, waiting: str | None, file: Buffer) -> Product:
    pixels, faces, scope = task.looks.pixels, task.looks.faces, task.scope
    verdict = None if pixels is None else pixels.get(path)
    face = None if faces is None else faces.get(path)
    if (pixels is not None and verdict is None) or (faces is not None and face is None):
        _without_pixels(file, scope)
    if verdict is not None and (verdict.code or scope.regions):
        file = _without_text(file, verdict, scope)
    has_fit = face is not None and face.outcome == "fit"
    if face is not None and face.outcome == "held":
        raise heads.held_back(face)
    if face is not None and has_fit:
        file = heads.without_face(bytes(file), Path(path), face)
    clean = headers.deidentify_dicom(
        file,
        task.key,
        task.profile,
        pixels_clean=verdict is not None or "DATA-16" in task.passed.get(path, ()),
        face_removed=has_fit,
        extras=scope.extras,
    )
    output = f"{clean.patient}/{clean.study}/{clean.series}/{clean.instance}.dcm"
    digest = hashlib.sha256()
    for (piece,) in pieces(memoryview(clean.pixels)):
        digest.update(piece)
    size = len(clean.header) + len(clean.pixels)
    written: Buffer
    if size < _MAP_FROM or waiting is None:
        written = clean.content
        if waiting is not None:
            write_parts(waiting, written)
    else:
        write_parts(waiting, clean.header, clean.pixels)
        written = map_file(Path(waiting))
    findings: list[verify.Finding] = []
    if not clean.sealed:
        findings = verify.find_leaks(file, written)
    return Product(
        "dicom",
        output,
        findings,
        content_id(task.key, clean.source_header, digest.digest()),
        content_id(task.key, clean.header, digest.digest()),
        clean.counts,
        tuple(clean.removed),
        (clean.old_patient, clean.patient),
        clean.old_uids,
    )


def _without_pixels(file: Buffer, scope: Scope) -> None:
    """Nobody looked at the file: right for reports, wrong for images.

    Raises:
        DataError: DATA-10 when it holds pixel data.
    """
    parsed = parse(file)
    tags = {element.tag: element for element in parsed.elements}
    kind = text(parsed.content, tags[_SOP_CLASS]) if _SOP_CLASS in tags else ""
    if is_asked_for(kind, scope) and not PIXEL_TAGS.isdisjoint(tags):
        raise DataError(
            "DATA-10",
            "pixel data that are not looked at for text and faces: in gzip, or of floating point.",
            fix="Unpack it.",
        )


def _without_text(file: Buffer, verdict: PixelVerdict, scope: Scope) -> bytes:
    """The file without the regions that are blanked and without text of its own header.

    Raises:
        DataError: DATA-10 when the pixels cannot be decoded, DATA-16 for text that must stay in the
            hands of a person.
    """
    from data_registry.deidentify.burned_in import blank, is_of_header

    if verdict.code not in ("", "DATA-16"):
        raise DataError(verdict.code, "its pixel data cannot be decoded, so nobody can look.")
    if verdict.code:
        places = ", ".join(
            f"frame {n} {box}" for n, rows in verdict.boxes.items() for box, _ in rows
        )
        if not verdict.everything or scope.pixels != "blank":
            raise DataError(
                "DATA-16", f"text in the pixels of the series: {places or 'elsewhere'}."
            )
        seeds = headers.identifying_texts(file)
        texts = [text for rows in verdict.boxes.values() for _, text in rows]
        if not all(is_of_header(text, seeds) for text in texts):
            raise DataError("DATA-16", f"text that is not of the header: {places}.")
    boxes = {n: [box for box, _ in rows] for n, rows in verdict.boxes.items()}
    return blank(bytes(file), boxes, everywhere=scope.regions)


def _is_nifti(path: str, head: bytes) -> bool:
    """Whether a file is one NIfTI file, by its magic; a packed one by what it unpacks to."""
    if head[:2] == b"\x1f\x8b":
        if not path.lower().endswith(".gz"):
            return False
        try:
            head = zlib.decompressobj(31).decompress(head, 544)
        except zlib.error:
            return path.lower().endswith(".nii.gz")
    return head[344:348] == b"n+1\0" or head[4:12] == b"n+2\0\r\n\x1a\n"


def _other(
    task: Task, path: str, waiting: str | None, kind: str, output: str, result: Result
) -> Product:
    """What became of a file that is no DICOM."""
    done = "" if waiting is None else whole_id(task.key, waiting)
    return Product(
        kind, output, result.findings, whole_id(task.key, path), done, result.actions,
        result.removed, result.patient,
    )  # fmt: skip


def _nifti(task: Task, path: str, waiting: str | None, _: Buffer) -> Product:
    from data_registry.deidentify import nifti, nifti_text

    place = nifti.place_of(task.key, path, task.root)
    source, passed = Path(path), task.passed.get(path, frozenset())
    if task.scope.pixels != "skip" and "DATA-16" not in passed and nifti_text.shows_text(source):
        raise DataError("DATA-16", "text in the pixels of the volume.")
    fit = None
    with tempfile.TemporaryDirectory() as folder:
        if task.scope.faces != "keep" and "DATA-17" not in passed:
            suffix = ".nii.gz" if path.lower().endswith(".gz") else ".nii"
            faceless = Path(folder) / f"{source.name.split('.')[0]}{suffix}"
            picture = task.face_pictures and task.face_pictures / f"{file_id(task.key, path)}.png"
            fit = heads.nifti_without_face(source, faceless, task.scope.faces, picture)
            source = source if fit is None else faceless
        result = nifti.deidentify_nifti(source, _path(waiting))
    result = replace(result, patient=(place.old, place.patient))
    product = _other(task, path, waiting, "nifti", place.output, result)
    return product if fit is None else replace(product, face=fit.to_mapping())


def _sidecar(task: Task, path: str, waiting: str | None, _: Buffer) -> Product:
    from data_registry.deidentify import nifti, sidecars

    place = nifti.place_of(task.key, path, task.root)
    result = sidecars.deidentify_sidecar(
        Path(path), _path(waiting), task.key, place.patient, task.profile
    )
    result = replace(result, patient=(place.old, place.patient))
    return _other(task, path, waiting, "sidecar", place.output, result)


def _raw_data(task: Task, path: str, waiting: str | None, _: Buffer) -> Product:
    from data_registry.deidentify import raw_data

    if task.scope.faces != "keep" and "DATA-17" not in task.passed.get(path, ()):
        raise DataError("DATA-17", "raw data, which shows a face once it is reconstructed.")
    kind, output, result = raw_data.deidentify_raw_data(Path(path), _path(waiting), task.key)
    return _other(task, path, waiting, kind, output, result)


def _own(task: Task, path: str, waiting: str | None) -> Product | None:
    """Our own output, unchanged since, is passed on; None for everything else.

    DICOM files carry a seal instead.
    """
    relative = os.path.relpath(path, task.root)
    kind, result = task.own.get(relative, ("", ""))
    if not kind or kind == "dicom" or whole_id(task.key, path) != result:
        return None
    if waiting is not None:
        write_parts(waiting, Path(path).read_bytes())
    return Product(kind, relative, [], result, result, {})


def _path(waiting: str | None) -> Path | None:
    return None if waiting is None else Path(waiting)


def write_parts(path: str, *parts: Buffer) -> None:
    """Write bytes one after another.

    Raises:
        DataError: DATA-07 when they cannot be written; nothing is left then.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for part in parts:
                for (piece,) in pieces(memoryview(part)):
                    rest = piece
                    while len(rest):
                        rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)
    except OSError as error:
        _forget(path)
        raise DataError(
            "DATA-07",
            f"cannot write to the output folder: {error.strerror}.",
            fix="Make room and run the command again; it goes on where it stopped.",
        ) from None


def _forget(waiting: str | None) -> None:
    if waiting is not None:
        Path(waiting).unlink(missing_ok=True)
