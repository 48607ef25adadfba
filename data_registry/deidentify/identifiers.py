"""Keyed identifiers: the same input and key give the same output on every machine, in any order.

Everything here is HMAC-SHA256 (RFC 2104) of length-prefixed parts. Without the key an identifier
can be neither computed nor checked against a list of guesses, which a plain hash would allow.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from datetime import timedelta
from pathlib import Path

from core_mri.errors import ConfigError, DataError

KEY_BYTES = 32
MAX_SHIFT_DAYS = 3650
MAX_TIME_SHIFT_S = 3600
MIN_TIME_SHIFT_S = 60
_STANDARD_UIDS = "1.2.840.10008."


def load_key(path: Path, *, create: bool) -> bytes:
    """Read the project key, or make one.

    Args:
        path: Text file with 64 hexadecimal digits, readable by its owner only.
        create: Make the file from 32 random bytes when there is none.

    Returns:
        The 32 bytes of the key (more when the file holds more).

    Raises:
        ConfigError: CONFIG-02 when the file is missing or cannot be read, CONFIG-01 when it is too
            short, not hexadecimal, or readable by others.
        DataError: DATA-07 when a new key cannot be written.
    """
    if create and not path.exists():
        _create_key(path)
    try:
        text, mode = path.read_text(encoding="ascii", errors="replace").strip(), path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(
            "CONFIG-02",
            f"no key file at {path}.",
            fix=f"Make one with `(umask 077; openssl rand -hex {KEY_BYTES} > {path})` and keep it "
            "apart from the data.",
        ) from None
    except OSError as error:
        raise ConfigError(
            "CONFIG-02", f"key file {path} cannot be read: {error.strerror}."
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            "CONFIG-01",
            f"key file {path} has mode {mode & 0o777:o}, others can read it; 600 is allowed.",
            fix=f"Run `chmod 600 {path}`, or make a new key if it may have been seen.",
        )
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise ConfigError(
            "CONFIG-01",
            f"key file {path} must hold at least {2 * KEY_BYTES} hexadecimal digits and nothing "
            f"else, got {len(text)} characters.",
            fix="Make a new key file; ids made with another key will not match.",
        )
    return key


def pseudonym(key: bytes, *parts: str) -> str:
    """``P`` and 16 base-32 characters (80 bits) for the tuple of `parts`."""
    return "P" + _base32(_digest(key, "pseudonym", *parts)[:10])


def patient_pseudonym(key: bytes, patient_id: str, issuer: str = "", *, study_uid: str = "") -> str:
    """The pseudonym of a patient, the same for a DICOM file and for its facts.

    Args:
        key: Project key.
        patient_id: Patient ID (0010,0020).
        issuer: Issuer of Patient ID (0010,0021): two hospitals may use one number twice.
        study_uid: Stands in when there is no Patient ID, so that nameless patients are not merged.
    """
    if patient_id.strip():
        return pseudonym(key, "patient", issuer.strip(), patient_id.strip())
    return pseudonym(key, "study", study_uid.strip())


def keyed_uid(key: bytes, uid: str) -> str:
    """A DICOM UID ``2.25.N`` with N of 128 bits; the standard's own UIDs (1.2.840.10008.*) stay."""
    if uid.startswith(_STANDARD_UIDS):
        return uid
    return f"2.25.{int.from_bytes(_digest(key, 'uid', uid.strip())[:16], 'big')}"


def file_id(key: bytes, path: Path | str) -> str:
    """``F`` and 16 base-32 characters: how logs name a file whose path may name a patient."""
    return "F" + _base32(_digest(key, "file", str(path))[:10])


def date_shift_days(key: bytes, subject: str) -> int:
    """Days to add to every date of a subject, in ``[-3650, -1]``; intervals within it stay."""
    number = int.from_bytes(_digest(key, "dates", subject)[:8], "big")
    return -1 - number % MAX_SHIFT_DAYS


def time_shift(key: bytes, subject: str) -> timedelta:
    """What to add to every time of day of a subject: 1 to 60 minutes, either way, and a fraction.

    A time of day to the microsecond finds one examination in an archive even when its date is
    unknown. The shift is short, so that few examinations cross midnight by it; intervals stay.
    """
    number = int.from_bytes(_digest(key, "times", subject)[:8], "big")
    span = (MAX_TIME_SHIFT_S - MIN_TIME_SHIFT_S) * 1_000_000
    microseconds = MIN_TIME_SHIFT_S * 1_000_000 + (number >> 1) % span
    return timedelta(microseconds=microseconds if number & 1 else -microseconds)


def _digest(key: bytes, purpose: str, *parts: str) -> bytes:
    """HMAC over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    message = b"".join(
        len(encoded).to_bytes(8, "big") + encoded
        for encoded in (part.encode("utf-8", "surrogatepass") for part in (purpose, *parts))
    )
    return hmac.new(key, message, hashlib.sha256).digest()


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=")


def _create_key(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise DataError("DATA-07", f"cannot write key file {path}: {error.strerror}.") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(KEY_BYTES) + "\n")
