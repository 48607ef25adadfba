"""Files of one kind in a source: which they are, what they show, and who the patient of each is."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from core_mri.errors import ConfigError
from core_mri.volume import FactValue
from data_registry.schema import Split

_BIDS = re.compile(r"(?:^|[/_])sub-([A-Za-z0-9]+)")
_NUMBERED = re.compile(
    r"(?:^|[/_.-])((?:subject|subj|sub|patient|pat|case|pt)[-_]?[0-9]+)(?![0-9])", re.IGNORECASE
)
_LABEL_NAME = re.compile(r"(?:^|/)(?:label|mask|seg)|(?:label|mask|seg)[^/]*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What the list of a labelled data set says of one of its files."""

    patient: str
    """Raw id of the patient."""
    case: str
    """Shared by the images and the label map of one case, and by no others."""
    split: Split | Literal["", "not-test"] = ""
    """Official split; ``not-test``: training or validation, as the hash says; empty: the hash."""
    channels: tuple[str, ...] = ()
    """Name of the sequence, or of each frame of a 4D file."""
    generated_from: tuple[str, ...] = ()
    """Of a `SourceFiles.generated` source: pseudonyms of the patients it was made from."""


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """Files of one kind: all of them images, or all labels, or told apart by their names."""

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
    unknown_spacing: bool = False
    """Nobody knows the distance of voxels in these pictures or ``.npy`` files: they are stored as
    1 mm wide, and the fact ``UnknownSpacing`` says that distances are in pixels."""
    stack: bool = False
    """The pictures of one folder are the slices of one volume, in the natural order of their names;
    otherwise each is a volume of one slice."""
    subject: str = ""
    """Regular expression with a group ``(?P<subject>...)``, searched in the path below the root.
    Where it matches it decides; otherwise see `subject_of`."""
    pair: str = ""
    """Regular expression with a group ``(?P<pair>...)``, searched in the path below the root: a
    label map describes the images of its patient and grid with the same match."""
    splits: Mapping[Split, str] = field(default_factory=dict)
    """Official split -> regular expression, searched in the path below the root, led by the root's
    own name; the first that is found decides for patients who are in no split yet. All others get
    theirs by the keyed hash.
    Ready cards tell the test and validation patients of benchmarks, and leave the training patients
    to the hash, as often they alone have labels."""
    region: str = ""
    """Body region of all files, when known."""
    sequence: str = ""
    """Sequence of all files, when known."""
    bids: bool = False
    """The root is a BIDS data set: facts come from sidecars and tables, sequences from suffixes."""
    synthetic: bool = False
    """Made by a program, not by a scanner."""
    generated: bool = False
    """Made by `core-mri synthesize` from training patients: synthetic, and never in another split
    than train, whatever else is told."""
    label_values: Mapping[int, str] = field(default_factory=dict)
    """Structure of each label value; other values than these and 0 are refused when given."""
    label_regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Structures that are several label values together, such as a whole tumor."""
    channels: tuple[str, ...] = ()
    """Sequences that the frames of 4D images are, in their order."""
    listed: Mapping[str, Listed] = field(default_factory=dict)
    """Files by their path below the root, with what a list says of them (`data_registry.layouts`);
    no others are taken when given, and it decides over `subject`, `pair` and `splits`."""

    def __post_init__(self) -> None:
        if self.unknown_spacing and self.spacing_mm is not None:
            raise ConfigError("CONFIG-01", "give spacing_mm or unknown_spacing, not both.")
        if self.spacing_mm is not None and not all(
            math.isfinite(s) and s > 0 for s in self.spacing_mm
        ):
            raise ConfigError(
                "CONFIG-01", f"spacing_mm must be three positive numbers, got {self.spacing_mm}."
            )
        if self.generated and not self.synthetic:
            raise ConfigError("CONFIG-01", "a generated source is synthetic: say both.")
        for name, pattern in (("subject", self.subject), ("pair", self.pair)):
            if pattern and name not in _groups(name, pattern):
                raise ConfigError(
                    "CONFIG-01",
                    f"{name} {pattern!r} has no group named {name}.",
                    fix=f"For example (?P<{name}>case[0-9]+).",
                )
        for split, pattern in self.splits.items():
            _groups(f"splits.{split}", pattern)

    def takes(self, relative: str) -> bool:
        """Whether a file, by its path below the root with ``/``, belongs to this source."""
        if self.listed:
            return relative in self.listed
        if self.include and not any(_glob(p).fullmatch(relative) for p in self.include):
            return False
        return not any(_glob(p).fullmatch(relative) for p in self.exclude)

    @property
    def declared_spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of voxels where files state none; 1 where nobody knows it."""
        return (1.0, 1.0, 1.0) if self.unknown_spacing else self.spacing_mm

    def listing_of(self, relative: str) -> Listed | None:
        """What the list says of a file, by its path below the root led by the root's own name."""
        return self.listed.get(relative.partition("/")[2])

    def pair_of(self, relative: str) -> str:
        """What an image shares with its label maps besides patient and grid; mostly nothing."""
        if listed := self.listing_of(relative):
            return listed.case
        found = re.search(self.pair, relative.partition("/")[2]) if self.pair else None
        return found["pair"] if found else ""

    def split_of(self, relative: str) -> Split | Literal["not-test"] | None:
        """The official split of a file, by its path below the root led by the root's own name."""
        if listed := self.listing_of(relative):
            return listed.split or None
        found = (s for s, pattern in self.splits.items() if re.search(pattern, relative))
        return next(found, None)

    def voxels_of(self, relative: str) -> Literal["image", "label"]:
        """What the voxels of a file that is neither DICOM nor raw data mean."""
        if self.role == "by-name":
            return "label" if _LABEL_NAME.search(relative) else "image"
        return "label" if self.role == "label" else "image"

    def patient_of(self, relative: str, facts: Mapping[str, FactValue]) -> str:
        """Who the patient is within the source: a raw id, to be turned into a keyed pseudonym.

        The first that is known: the list; the match of `subject`; PatientID; the ``sub-XXX`` of
        BIDS in the path; a numbered word (patient, subject, case, pt) in the path;
        StudyInstanceUID; the first folder below the root (the root itself for files right in it).
        The last one errs on the safe side: two patients may become one subject, which costs
        variety, but not one patient two, which would leak test patients into training. It cannot
        know everything: a patient with a second study and no PatientID, or whose files lie in
        several top folders, needs `subject`.

        Args:
            relative: Path below the root with ``/``, led by the name of the root itself.
            facts: Header facts as read.
        """
        _, _, below = relative.partition("/")
        if listed := self.listing_of(relative):
            return listed.patient
        if self.subject and (match := re.search(self.subject, below)):
            return match["subject"]
        patient = str(facts.get("PatientID", "")).strip()
        if patient:
            return patient
        for pattern in (_BIDS, _NUMBERED):
            if found := pattern.search(below) or pattern.search(relative):
                return found[1].lower() if pattern is _NUMBERED else found[1]
        study = str(facts.get("StudyInstanceUID", "")).strip()
        if study:
            return f"study:{study}"
        top, _, rest = below.partition("/")
        return f"folder:{top if rest else relative.partition('/')[0]}"


def _groups(name: str, pattern: str) -> Mapping[str, int]:
    """Named groups of a regular expression.

    Raises:
        ConfigError: CONFIG-01 when it is none.
    """
    try:
        return re.compile(pattern).groupindex
    except re.error as error:
        raise ConfigError(
            "CONFIG-01", f"{name} {pattern!r} is no regular expression: {error}."
        ) from None


@functools.cache
def _glob(pattern: str) -> re.Pattern[str]:
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))
