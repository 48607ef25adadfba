"""Old and new identifiers, for those who may know both: MIDI-B maps, and an encrypted store.

The engine needs neither: all new identifiers follow from the key. They are for handing in a
benchmark's answers, and for a steward who must find the patient behind a pseudonym.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from core_mri.errors import ConfigError, DataError

UID_MAP, PATIENT_MAP = "uid_map.csv", "patient_map.csv"
_PURPOSE = b"core-mri mapping store"


class Maps:
    """Old and new ids of a run, each once.

    Args:
        uids, patients: As seen so far.
    """

    def __init__(self) -> None:
        self.uids: dict[str, str] = {}
        self.patients: dict[str, str] = {}

    def add(self, patient: tuple[str, str], uids: dict[str, str]) -> None:
        """Note the ids of a file."""
        if patient[0]:
            self.patients[patient[0]] = patient[1]
        self.uids.update(uids)

    def write_csv(self, folder: Path) -> None:
        """``uid_map.csv`` and ``patient_map.csv`` with columns id_old, id_new (MIDI-B 2024).

        Raises:
            DataError: DATA-07 when they cannot be written.
        """
        for name, rows in ((UID_MAP, self.uids), (PATIENT_MAP, self.patients)):
            with private_writer(folder / name) as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["id_old", "id_new"])
                writer.writerows(sorted(rows.items()))

    def append_encrypted(self, path: Path, key: bytes) -> None:
        """Append all as one encrypted line (Fernet: AES-128-CBC and HMAC-SHA256).

        Raises:
            ConfigError: CONFIG-06 when `cryptography` is not installed.
            DataError: DATA-07 when it cannot be written.
        """
        rows = json.dumps({"patients": self.patients, "uids": self.uids}, sort_keys=True)
        token = _cipher(key).encrypt(rows.encode())
        with private_writer(path, "a") as stream:
            stream.write(token.decode("ascii") + "\n")


def read_mapping(path: Path, key: bytes) -> Iterator[dict[str, dict[str, str]]]:
    """Each run's ``{"patients": {old: new}, "uids": {old: new}}`` of an encrypted store.

    Raises:
        ConfigError: CONFIG-04 for another key, CONFIG-06 when `cryptography` is not installed.
        DataError: DATA-01 when there is no such file.
    """
    cipher = _cipher(key)
    from cryptography.fernet import InvalidToken

    try:
        lines = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    for line in lines:
        try:
            yield json.loads(cipher.decrypt(line.encode("ascii")))
        except InvalidToken:
            raise ConfigError("CONFIG-04", f"{path} was written with another key.") from None


def private_writer(path: Path, mode: str = "w"):  # type: ignore[no-untyped-def]
    """Open a text file that only its owner can read, 0600 whatever it was before.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, flags, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise DataError("DATA-07", f"cannot write {path}: {error.strerror}.") from None
    return os.fdopen(descriptor, mode, encoding="utf-8", newline="")


def outside(path: Path, *folders: Path) -> None:
    """Refuse a private file inside an output folder or a registry.

    Raises:
        ConfigError: CONFIG-05.
    """
    place = path.resolve()
    for folder in folders:
        if folder.resolve() in (place, *place.parents):
            raise ConfigError(
                "CONFIG-05",
                f"{path} names patients and would lie inside {folder}.",
                fix="Give a path outside of it.",
            )
    for parent in place.parents:
        if (parent / "registry.json").is_file():
            raise ConfigError(
                "CONFIG-05",
                f"{path} names patients and would lie inside the registry {parent}.",
                fix="Give a path outside of it.",
            )


def _cipher(key: bytes):  # type: ignore[no-untyped-def]
    try:
        from cryptography.fernet import Fernet
    except ImportError:
        raise ConfigError(
            "CONFIG-06",
            "the encrypted mapping store needs the package cryptography.",
            fix='Install it with pip install "core-mri[deid]".',
        ) from None
    derived = hmac.new(key, _PURPOSE, hashlib.sha256).digest()
    return Fernet(base64.urlsafe_b64encode(derived))


def write_words(path: Path, words: Iterable[tuple[str, int]]) -> None:
    """Words taken out of descriptions, most frequent first, for a person to look at."""
    with private_writer(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["word", "count"])
        writer.writerows(words)


def write_heads(path: Path, heads: list[dict[str, object]]) -> None:
    """Heads with the figures of their fit; ``faces/FIRST_FILE.png`` shows each of them."""
    with private_writer(path) as stream:
        columns = ["first_file", "path", "code", "information", "scale", "dice", "overlap"]
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(heads)
