"""A folder of DICOM files to a folder of de-identified ones, with an audit that holds no values."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from core_mri.errors import ConfigError, CoreMRIError, DataError
from core_mri.version import __version__
from data_registry.deidentify.headers import METHOD, deidentify_dataset, transfer_syntax
from data_registry.deidentify.identifiers import file_id, pseudonym

if TYPE_CHECKING:
    from pydicom import Dataset

AUDIT = "audit.jsonl"
_KIND = "core-mri data deidentify"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

Status = Literal["done", "quarantined"]


@dataclass(frozen=True)
class Outcome:
    """What became of one file; a line of the audit.

    Args:
        file: Keyed id of the file's absolute path.
        stamp: Size in bytes and time of change in ns, to know a file again.
        status: ``done`` or ``quarantined``.
        code: Why it was quarantined; empty when it was not.
        output: Path below the output folder, made of keyed ids; empty when quarantined.
        counts: Attributes ``kept``, ``replaced``, ``removed``.
        repeated: Known from an earlier run; nothing was done.
    """

    file: str
    stamp: tuple[int, int]
    status: Status
    code: str = ""
    output: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    repeated: bool = False


def find_files(source: Path) -> list[Path]:
    """`source` itself, or all files below it, sorted; links to folders are not followed.

    Raises:
        DataError: DATA-01 when there is nothing.
    """
    if source.is_file():
        return [source]
    files = [Path(folder) / name for folder, _, names in os.walk(source) for name in names]
    if not files:
        what = "an empty folder" if source.is_dir() else "no such path"
        raise DataError("DATA-01", f"{source}: {what}.", fix="Give a DICOM file or a folder.")
    return sorted(files)


def deidentify_files(files: list[Path], out: Path, key: bytes) -> Iterator[Outcome]:
    """De-identify files one by one; inputs are only read, outputs appear complete or not at all.

    A file that the audit in `out` knows and that has not changed is not read again. A file that
    cannot be de-identified is quarantined: it leaves a line with a code, and no output.

    Args:
        files: DICOM files, one image each.
        out: ``PATIENT/STUDY/SERIES/SOP.dcm`` with keyed names, and ``audit.jsonl``.
        key: Project key.

    Yields:
        One outcome per file, in order, after its line of the audit is on disk.

    Raises:
        ConfigError: CONFIG-03 when `out` holds something else, CONFIG-04 when it was made with
            another key.
        DataError: DATA-07 when `out` cannot be written.
    """
    known = _open_audit(out, key)
    with (out / AUDIT).open("a", encoding="ascii") as audit:
        for path in files:
            identity = file_id(key, path.resolve())
            stamp = _stamp(path)
            before = known.get(identity)
            if before and before.stamp == stamp and _is_there(out, before):
                yield before
                continue
            old = before.output if before else ""
            outcome = _deidentify_file(path, out, key, identity, stamp, old)
            _append(audit, outcome)
            yield outcome


def _deidentify_file(
    path: Path, out: Path, key: bytes, identity: str, stamp: tuple[int, int], old: str
) -> Outcome:
    """One file; `old` is the output that an earlier version of it left, which may be replaced."""
    counts: Counter[str] = Counter()
    try:
        clean = deidentify_dataset(_read(path), key, counts=counts)
        content = _encode(clean)
        output = "/".join((clean.PatientID, clean.StudyInstanceUID, clean.SeriesInstanceUID))
        output += f"/{clean.SOPInstanceUID}.dcm"
        target = out / output
        if output != old and target.exists() and target.read_bytes() != content:
            raise DataError("DATA-02", "another image has the same SOP instance UID.")
    except CoreMRIError as error:
        return Outcome(identity, stamp, "quarantined", error.code)
    _write(target, content)
    return Outcome(identity, stamp, "done", output=output, counts=dict(counts))


def _read(path: Path) -> Dataset:
    """A DICOM image whose pixel data are all there and are not known to show text.

    Raises:
        DataError: DATA-02 damaged, DATA-03 no DICOM, DATA-10 no pixel data, DATA-11 burned-in text
            stated or to be expected (secondary capture).
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = stream.read(4)
            stream.seek(0)
            # Files without preamble begin with an element of group 0002 or 0008.
            bare = start[:2] in (b"\x02\0", b"\x08\0", b"\0\x08")
            dataset = pydicom.dcmread(stream, force=bare)
            has_pixels = any(keyword in dataset for keyword in _PIXELS)
            damaged = has_pixels and not _is_complete(dataset)
            burned_in = str(dataset.get("BurnedInAnnotation") or "") == "YES"
            captured = str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE)
    except InvalidDicomError:
        raise DataError("DATA-03", "no DICOM file.") from None
    except Exception as error:  # pydicom lets errors of many kinds through for damaged files
        raise DataError("DATA-02", f"not readable ({type(error).__name__}).") from None
    if not has_pixels:
        raise DataError("DATA-10", "no pixel data.")
    if damaged:
        raise DataError("DATA-02", "fewer pixel data than the header says.")
    if burned_in or captured:
        raise DataError("DATA-11", "the pixels show text, or may.")
    return dataset


def _is_complete(dataset: Dataset) -> bool:
    """Whether uncompressed pixel data have the length of PS3.5 8.1.1; compressed are not judged."""
    from pydicom.uid import UID

    if UID(transfer_syntax(dataset)).is_compressed or "PixelData" not in dataset:
        return True
    from pydicom.pixels.utils import get_expected_length

    return len(dataset.PixelData) >= int(get_expected_length(dataset))


def _encode(clean: Dataset) -> bytes:
    import pydicom

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(buffer, clean, enforce_file_format=True)
    except Exception as error:  # values that pydicom reads but cannot write
        raise DataError("DATA-02", f"not writable ({type(error).__name__}).") from None
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _full(error) from None


def _open_audit(out: Path, key: bytes) -> dict[str, Outcome]:
    """Outcomes of earlier runs by keyed id; makes the folder and its first line when new."""
    path = out / AUDIT
    head = {
        "kind": _KIND,
        "version": __version__,
        "method": METHOD,
        "key": pseudonym(key, "audit"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(out.iterdir()):
                raise ConfigError(
                    "CONFIG-03",
                    f"{out} is not empty and holds no {AUDIT} of this command.",
                    fix="Give a new folder.",
                )
            path.write_text(json.dumps(head) + "\n", encoding="ascii")
            return {}
        text = path.read_text(encoding="ascii", errors="replace")
        if not text.endswith("\n"):  # killed while it wrote a line
            path.write_text(text + "\n", encoding="ascii", errors="replace")
        lines = text.splitlines()
    except OSError as error:
        raise _full(error) from None
    first = _parse(lines[0]) if lines else {}
    if first.get("kind") != _KIND:
        raise ConfigError(
            "CONFIG-03", f"{path} was not written by `{_KIND}`.", fix="Give a new folder."
        )
    if first.get("key") != head["key"]:
        raise ConfigError(
            "CONFIG-04",
            f"{out} was made with another key; one folder has one key.",
            fix="Use the key of the first run, or give a new folder.",
        )
    return _outcomes(lines[1:])


def _outcomes(lines: list[str]) -> dict[str, Outcome]:
    """Later lines win; a line cut off by a kill is skipped, its file is done again."""
    known = {}
    for line in lines:
        record = _parse(line)
        if record:
            record["stamp"] = tuple(record["stamp"])
            known[record["file"]] = Outcome(**record, repeated=True)
    return known


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _append(audit: TextIO, outcome: Outcome) -> None:
    record = asdict(outcome)
    del record["repeated"]
    try:
        audit.write(json.dumps(record) + "\n")
        audit.flush()
    except OSError as error:
        raise _full(error) from None


def _is_there(out: Path, outcome: Outcome) -> bool:
    return outcome.status == "quarantined" or (out / outcome.output).is_file()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link: quarantined when it is read
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _full(error: OSError) -> DataError:
    return DataError(
        "DATA-07",
        f"cannot write to the output folder: {error.strerror}.",
        fix="Make room and run the command again; it goes on where it stopped.",
    )
