"""Source lists: where scans lie, under which licence, and who the patient of each file is."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_mri.config import find_config, load_config
from core_mri.errors import ConfigError
from core_mri.volume import FactValue

PACKAGED = Path(__file__).parent / "sources"
"""Folder of the source lists that come with core-mri."""

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*(?: (?:AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*")
_BIDS = re.compile(r"(?:^|[/_])sub-([A-Za-z0-9]+)")
_NUMBERED = re.compile(
    r"(?:^|[/_.-])((?:subject|subj|sub|patient|pat|case|pt)[-_]?[0-9]+)(?![0-9])", re.IGNORECASE
)
_LABEL_NAME = re.compile(r"(?:^|/)(?:label|mask|seg)|(?:label|mask|seg)[^/]*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of a source list. Several may share a name, as images and their labels do."""

    name: str
    """Name of the source in the catalogue; also the namespace of its patient ids."""
    licence: str
    """SPDX id (``CC-BY-4.0``), ``LicenseRef-...`` for any other text, or ``unknown``."""
    root: str = ""
    """Folder or file. In a source list ``~`` and environment variables are replaced, and a relative
    path starts at the folder of the list."""
    package: str = ""
    """Instead of `root`: an installed Python package whose files are taken."""
    include: tuple[str, ...] = ()
    """Patterns of files to take, below the root; all when empty. ``*`` stays within a folder name,
    ``**/`` is any number of folders, and a pattern without ``/`` means the file name."""
    exclude: tuple[str, ...] = ()
    """Patterns of files to leave out."""
    role: Literal["image", "label", "kspace", "by-name"] = "image"
    """``by-name``: files other than DICOM are labels when their name holds, or a folder above them
    starts with, label, mask or seg. ``kspace`` says that ``.npy`` files are raw data; HDF5, vendor
    raw data and complex ``.npy`` files are seen as such under every role but ``label``."""
    spacing_mm: tuple[float, float, float] | None = None
    """Distance of voxel centers (columns, rows, slices) in formats that state none: pictures and
    ``.npy``. It is never guessed: without it such files are quarantined with GEOMETRY-01."""
    stack: bool = False
    """The pictures of one folder are the slices of one volume, in the natural order of their names;
    otherwise each is a volume of one slice."""
    subject: str = ""
    """Regular expression with a group ``(?P<subject>...)``, searched in the path below the root.
    Where it matches it decides; otherwise see `subject_of`."""
    subject_namespace: str = ""
    """Patients of equal id are one person within a namespace; `name` when empty."""
    region: str = ""
    """Body region of all files, when known."""
    sequence: str = ""
    """Sequence of all files, when known."""
    synthetic: bool = False
    """Made by a program, not by a scanner."""
    label_values: Mapping[int, str] = field(default_factory=dict)
    """Structure of each label value; other values than these and 0 are refused when given."""

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if not self.name or self.name != self.name.strip():
            raise ConfigError("CONFIG-01", "a source needs a name without spaces around it.")
        if not _LICENCE.fullmatch(self.licence):
            raise ConfigError(
                "CONFIG-01",
                f"{where}: licence {self.licence!r} is no SPDX id.",
                fix="Use an id such as CC-BY-4.0 or MIT, LicenseRef-NAME, or unknown.",
            )
        if self.spacing_mm is not None and not all(
            math.isfinite(s) and s > 0 for s in self.spacing_mm
        ):
            raise ConfigError(
                "CONFIG-01",
                f"{where}: spacing_mm must be three positive numbers, got {self.spacing_mm}.",
            )
        if bool(self.root) == bool(self.package):
            raise ConfigError("CONFIG-05", f"{where}: give either root or package.")
        try:
            groups = re.compile(self.subject).groupindex
        except re.error as error:
            raise ConfigError(
                "CONFIG-01", f"{where}: subject {self.subject!r} is no regular expression: {error}."
            ) from None
        if self.subject and "subject" not in groups:
            raise ConfigError(
                "CONFIG-01",
                f"{where}: subject {self.subject!r} has no group named subject.",
                fix="For example (?P<subject>case[0-9]+).",
            )

    def folder(self) -> Path:
        """The root on this machine.

        Raises:
            ConfigError: CONFIG-06 when the package is not installed.
        """
        if self.package:
            try:
                found = importlib.util.find_spec(self.package)
            except ModuleNotFoundError:
                found = None
            if found is None or not found.submodule_search_locations:
                raise ConfigError(
                    "CONFIG-06",
                    f"source {self.name!r} is in package {self.package}, which is not installed.",
                    fix='Install it with pip install "core-mri[demo]".',
                )
            return Path(next(iter(found.submodule_search_locations)))
        return Path(self.root).resolve()

    def takes(self, relative: str) -> bool:
        """Whether a file, by its path below the root with ``/``, belongs to this source."""
        if self.include and not any(_glob(p).fullmatch(relative) for p in self.include):
            return False
        return not any(_glob(p).fullmatch(relative) for p in self.exclude)

    def voxels_of(self, relative: str) -> Literal["image", "label"]:
        """What the voxels of a file that is neither DICOM nor raw data mean."""
        if self.role == "by-name":
            return "label" if _LABEL_NAME.search(relative) else "image"
        return "label" if self.role == "label" else "image"

    def subject_of(self, relative: str, facts: Mapping[str, FactValue]) -> tuple[str, str]:
        """Who the patient is: namespace and raw id, to be turned into a keyed pseudonym.

        The first that is known: the match of `subject`; PatientID; the ``sub-XXX`` of BIDS in the
        path; a numbered word (patient, subject, case, pt) in the path; StudyInstanceUID; the first
        folder below the root (the root itself for files right in it). The last one errs on the safe
        side: two patients may become one subject, which costs variety, but not one patient two,
        which would leak test patients into training. It cannot know everything: a patient with a
        second study and no PatientID, or whose files lie in several top folders, needs `subject`.

        Args:
            relative: Path below the root with ``/``, led by the name of the root itself.
            facts: Header facts as read.
        """
        namespace = self.subject_namespace or self.name
        _, _, below = relative.partition("/")
        if self.subject and (match := re.search(self.subject, below)):
            return namespace, match["subject"]
        patient = str(facts.get("PatientID", "")).strip()
        if patient:
            return namespace, patient
        for pattern in (_BIDS, _NUMBERED):
            if found := pattern.search(below) or pattern.search(relative):
                return namespace, found[1].lower() if pattern is _NUMBERED else found[1]
        study = str(facts.get("StudyInstanceUID", "")).strip()
        if study:
            return namespace, f"study:{study}"
        top, _, rest = below.partition("/")
        return namespace, f"folder:{top if rest else relative.partition('/')[0]}"


@dataclass(frozen=True, kw_only=True)
class SourceList:
    """Content of a source list file."""

    sources: tuple[Source, ...]
    """The entries."""


def load_sources(name: str | Path) -> tuple[Source, ...]:
    """Read a source list: a YAML file, or the name of a packaged one.

    Raises:
        ConfigError: CONFIG-01 or CONFIG-05 for its content, CONFIG-02 when there is no such file.
    """
    path = find_config(str(name), PACKAGED)
    entries = load_config(SourceList, path).sources
    if not entries:
        raise ConfigError("CONFIG-01", f"{path}: the list of sources is empty.")
    return tuple(_anchored(entry, path.parent) for entry in entries)


def _anchored(entry: Source, folder: Path) -> Source:
    """The entry with an absolute root."""
    if not entry.root:
        return entry
    expanded = os.path.expandvars(entry.root)
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise ConfigError(
            "CONFIG-01",
            f"source {entry.name!r}: environment variable {missing[1]} is not set.",
            fix=f"Set it to the folder of the data: export {missing[1]}=...",
        )
    return dataclasses.replace(entry, root=str(folder / Path(expanded).expanduser()))


@functools.cache
def _glob(pattern: str) -> re.Pattern[str]:
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))
