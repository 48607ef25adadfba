"""Labels from a CSV file, keyed by volume, slice or patient."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core_mri.errors import DataError

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow

Key = tuple[str, int]
"""(volume or subject id, slice); slice -1 where the whole is labelled."""


@dataclass(frozen=True)
class LabelsTable:
    """What the file says."""

    path: Path
    by: Literal["subject", "volume", "slice"]
    labels: dict[Key, str]

    def of_volume(self, row: VolumeRow) -> str:
        """The label of a volume or of its patient; empty where there is none."""
        return self.labels.get((row.subject_id if self.by == "subject" else row.volume_id, -1), "")

    def of_slice(self, row: VolumeRow, index: int) -> str:
        """The label of a slice, which is that of its volume unless slices have their own."""
        if self.by == "slice":
            return self.labels.get((row.volume_id, index), "")
        return self.of_volume(row)


def read_labels(path: Path, column: str) -> LabelsTable:
    """Read a table of labels; rows without a label do not count.

    Args:
        path: CSV with a header, UTF-8; a column ``subject`` or ``volume`` (and perhaps ``slice``,
            0-based) with ids of the registry.
        column: The one that holds the labels.

    Raises:
        DataError: DATA-31 when the file is missing, no table, lacks a column or gives one key two
            labels; the line is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("DATA-31", f"{path}: not a readable table of labels ({error}).") from None
    columns = [name for name in (rows[0] if rows else {}) if name]
    keys = [name for name in ("subject", "volume") if name in columns]
    if len(keys) != 1 or column not in columns or ("slice" in columns and keys != ["volume"]):
        raise DataError(
            "DATA-31",
            f"{path}: has the columns {columns}; needed are {column!r} and either 'subject' or "
            "'volume', with 'volume' perhaps 'slice'.",
            fix="`core-mri data ls --json` lists the ids.",
        )
    by_slice = "slice" in columns
    labels: dict[Key, str] = {}
    for number, row in enumerate(rows, start=2):
        label = (row[column] or "").strip()
        if not label:
            continue
        key = (row[keys[0]].strip(), _slice(path, number, row["slice"]) if by_slice else -1)
        if labels.setdefault(key, label) != label:
            raise DataError(
                "DATA-31",
                f"{path}, line {number}: {keys[0]} {key[0]}"
                + (f", slice {key[1]}," if by_slice else "")
                + f" has the label {label!r}, an earlier line says {labels[key]!r}.",
                fix="Keep one line for each.",
            )
    return LabelsTable(path, "slice" if by_slice else keys[0], labels)  # type: ignore[arg-type]


def _slice(path: Path, number: int, text: str | None) -> int:
    if text is None or not text.strip().isdecimal():
        raise DataError("DATA-31", f"{path}, line {number}: slice {text!r} is no whole number.")
    return int(text)
