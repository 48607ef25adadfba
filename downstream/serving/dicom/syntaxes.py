"""Transfer syntaxes that are taken, and a plain word about those that are not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from core_mri.errors import ServingError
from core_mri.files.dicom_header import is_decodable


@cache
def supported() -> tuple[str, ...]:
    """UIDs of those whose pixels this installation can decode."""
    from pydicom.uid import AllTransferSyntaxes

    return tuple(str(uid) for uid in AllTransferSyntaxes if is_decodable(str(uid)))


def name_of(uid: str) -> str:
    """UID and name."""
    from pydicom.uid import UID

    return f"{uid} ({UID(uid).name})" if UID(uid).name != uid else uid


def refused(found: Iterable[str]) -> ServingError:
    """What to say of others."""
    return ServingError(
        "SERVE-34",
        f"transfer syntax {', '.join(map(name_of, sorted(set(found))))}; supported are "
        f"{', '.join(map(name_of, supported()))}.",
        fix="Send the objects in one of these, such as Explicit VR Little Endian.",
    )


def syntax_of(path: Path) -> str:
    """Of a DICOM file; empty where it states none or is none."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return ""
    try:
        return str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    except (InvalidDicomError, ValueError, KeyError, EOFError, OSError, NotImplementedError):
        return ""  # readers say what is wrong with it
