"""What became of one file: the line of the audit, and apart from it what names the patient."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_registry.deidentify.verify import Finding

Status = Literal["done", "quarantined", "left out"]
Verdict = Literal["passed", "vetoed", ""]
Passed = dict[str, frozenset[str]]
"""File -> codes for which it was held back, and for which a person has passed it."""


@dataclass(frozen=True)
class Outcome:
    """A line of the audit; it holds no value of the file.

    Args:
        file: Keyed id of the file's absolute path.
        stamp: Keyed hash of size and time of change, to know a file again.
        status: ``done``, ``quarantined``, or ``left out`` for an index of other files.
        kind: dicom, nifti, sidecar, fastmri, ismrmrd; empty when unknown.
        code: Why it was quarantined or left out; empty when it was not.
        output: Path below the output folder, made of keyed ids; empty without output.
        source, result: Keyed hashes of input and output, see :func:`content_id`.
        actions: Attributes by action of PS3.15.
        words_removed: Words taken out of descriptions.
        verdict: Of the verifier; empty when it had nothing to see.
        found: Where the verifier found what, as ``TAG kind``.
        texts: Keyed hashes of what was read in the pixels.
        group: Keyed id of the series (DICOM) or the file that a person looks at as one.
        face: What a head's fit reached (`HeadFit`); empty where no face was looked for.
        repeated: Known from an earlier run; nothing was done.
    """

    file: str
    stamp: str
    status: Status
    kind: str = ""
    code: str = ""
    output: str = ""
    source: str = ""
    result: str = ""
    actions: dict[str, int] = field(default_factory=dict)
    words_removed: int = 0
    verdict: Verdict = ""
    found: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    group: str = ""
    face: dict[str, float] = field(default_factory=dict)
    repeated: bool = False


@dataclass(frozen=True)
class PrivateDetails:
    """What may leave the process only to the files that the user named for it.

    Args:
        message: Why it was quarantined, in full.
        removed: Words taken out of descriptions.
        patient: Patient ID and its pseudonym; empty when there is none.
        uids: Old to new UIDs of instance, series and study.
    """

    message: str = ""
    removed: tuple[str, ...] = ()
    patient: tuple[str, str] = ("", "")
    uids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Of a file that is no DICOM.

    Args:
        findings: Of the verifier.
        actions, removed, patient: As in `Outcome` and `PrivateDetails`.
    """

    findings: list[Finding]
    actions: dict[str, int]
    removed: tuple[str, ...] = ()
    patient: tuple[str, str] = ("", "")


def content_id(key: bytes, header: bytes | memoryview, pixels_digest: bytes) -> str:
    """``C`` and 26 base-32 characters: HMAC-SHA256 of the digests of header and pixel data.

    The pixel data of input and output are the same bytes, so that one digest serves both.
    """
    message = b"core-mri content" + hashlib.sha256(header).digest() + pixels_digest
    digest = hmac.new(key, message, hashlib.sha256).digest()[:16]
    return "C" + base64.b32encode(digest).decode("ascii").rstrip("=")


def whole_id(key: bytes, path: str) -> str:
    """The same for all bytes of a file that is no DICOM."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return content_id(key, b"", digest.digest())
