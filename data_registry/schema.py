"""The rows of the catalogue: each table is one frozen dataclass, and so its schema.

A registry folder holds `registry.json`, `shards/*.h5` (voxels), `cohorts/*.parquet` and
`commits/NNNNNNNN/*.parquet` (everything else). A commit folder is immutable and appears by one
rename; it holds the tables below, each with the extra column ``commit`` (its number): later rows
win over earlier ones.

Subjects and studies are no tables but views over volumes (`views.py`): every fact about them
follows from their volumes, and what is stored once cannot contradict itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 3
"""Written to `registry.json`; a newer version is refused with DATA-08, an older one migrated."""

PERCENTILES = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0)
"""Percents of `VolumeRow.percentiles`."""

Split = Literal["train", "val", "test"]
Role = Literal["image", "label", "kspace"]
Codec = Literal["bitshuffle-lz4", "none"]
Row = TypeVar("Row")

PAIR_NAME = "PairName"
"""Fact of single pictures and listed cases: keyed name that an image shares with its labels."""
CHANNEL = "Channel"
"""Fact of images: name of the sequence within a case of several, as its data set tells."""
LABEL_NAMES = "LabelNames"
"""Fact of label maps: ``1=liver;2=spleen``."""
LABEL_REGIONS = "LabelRegions"
"""Fact of label maps: structures of several values, ``whole tumor=1,2,3;core=2,3``."""
LABEL_VALUES = "LabelValues"
"""Fact of label maps: the values they hold besides 0, ascending, ``1;2``."""
GENERATED = "GeneratedFrom"
"""Fact of what `core-mri synthesize` made: pseudonyms of the patients whose labels or scans it was
made from, ``S1;S2``."""
UNKNOWN_SPACING = "UnknownSpacing"
"""Fact of pictures whose spacing nobody knows: their millimetres are pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeRow:
    """One stored volume: what it shows, where it came from, where its voxels lie."""

    volume_id: str
    """Hash of subject, role, voxels and geometry, and of the `PAIR_NAME` of a label map: a scan has
    one id wherever its files lie."""
    subject_id: str
    """Keyed pseudonym of the patient; splits follow it."""
    study_id: str
    """Keyed id of the examination, empty when the file names none."""
    series_id: str
    """Keyed id of the DICOM series or of the NIfTI file."""
    source: str
    """Name of the source list entry."""
    licence: str
    """SPDX id, ``LicenseRef-...`` or ``unknown``."""
    role: Role
    """``"image"``; ``"label"``, an integer mask; ``"kspace"``, raw data. Only images become slices
    for pretraining."""
    synthetic: bool
    """Made by a program, not by a scanner."""
    shard: str
    """File name under `shards/`."""
    dataset: str
    """HDF5 dataset in the shard; frames of a 4D file end in ``-fNNNN``, their 0-based number."""
    num_slices: int
    """Size of the first stored axis."""
    rows: int
    """Size of the last stored axis but one (k-space: readout)."""
    columns: int
    """Size of the last stored axis (k-space: phase encode); coils lie between slices and rows."""
    coils: int
    """Size of the axis between slices and rows of k-space; 1 elsewhere."""
    dtype: str
    """NumPy name of the type of the voxels, the one of the file."""
    payload: str
    """NumPy name of the stored type: voxel = payload * `scale`, exactly, in `dtype`."""
    scale: float
    """1 where the payload are the voxels."""
    codec: Codec
    """How slices are stored: one chunk each, or contiguous."""
    affine: tuple[float, ...]
    """16 numbers, row by row: stored index (slice, row, column, 1) to RAS+ mm."""
    spacing_mm: tuple[float, ...]
    """Distance of voxel centers along slice, row, column."""
    plane: str
    """``axial``, ``coronal`` or ``sagittal``; the stored axes are `SLICE_ORIENTATION[plane]`."""
    region: str
    """Body region, or ``unknown``."""
    region_by: str
    """What the region was told from."""
    region_confidence: float
    """0 (guess) to 1 (certain)."""
    sequence: str
    """Sequence family such as ``T1``, or ``unknown``."""
    sequence_by: str
    """What the sequence was told from."""
    sequence_confidence: float
    """0 (guess) to 1 (certain)."""
    vendor: str
    """Maker of the scanner, or ``unknown``."""
    field_strength_t: float | None
    """Field strength in tesla, None when unknown."""
    grid: str
    """Hash of shape and affine (rounded to a micrometer): equal means the same voxels."""
    split: Split
    """The subject's part of the data."""
    window_low: float
    """0.5th percentile of the finite voxels (labels: 0)."""
    window_high: float
    """99.5th percentile of the finite voxels (labels: the largest value)."""
    percentiles: tuple[float, ...]
    """Percentiles of the voxels at `PERCENTILES`; empty for k-space."""
    pixel_hash: str
    """Hash of the voxels, their type and shape, without geometry."""
    num_foreground_slices: int
    """Slices with at least 2 % foreground (`SliceRow.foreground`)."""
    facts: str = "{}"
    """De-identified header facts as JSON, by DICOM keyword."""
    plane_by: str = ""
    """What, besides the stored axes, the plane was told from."""
    plane_confidence: float = 0.0
    """0 (guess) to 1 (certain)."""
    contrast: str = "unknown"
    """Acquired with a contrast agent: ``yes``, ``no`` or ``unknown``."""
    contrast_by: str = ""
    """What the contrast was told from."""
    contrast_confidence: float = 0.0
    """0 (guess) to 1 (certain)."""
    votes: str = "{}"
    """What each source said of each label, as JSON (`labels.Votes`)."""

    @property
    def generated_from(self) -> frozenset[str] | None:
        """Patients whose labels or scans it was generated from; None for all other volumes."""
        told = json.loads(self.facts).get(GENERATED)
        return None if told is None else frozenset(filter(None, str(told).split(";")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceRow:
    """One slice of a volume, so that a loader can choose slices without reading voxels."""

    volume_id: str
    """The volume."""
    index: int
    """0-based position along the first stored axis."""
    foreground: float
    """Fraction of voxels brighter than a tenth of the volume's window (labels: not 0)."""
    byte_start: int
    """Where the stored slice begins in the shard file."""
    num_bytes: int
    """Stored (compressed) length."""
    checksum: int
    """CRC-32 of the stored bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRow:
    """One shard file as it was written."""

    shard: str
    """File name under `shards/`."""
    size: int
    """Bytes."""
    sha256: str
    """Of the whole file, as `sha256sum` prints it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceRow:
    """What was promised about a source.

    A licence that was unknown may be found out, and the card be completed; the rest cannot change.
    """

    source: str
    """Its name."""
    licence: str
    """SPDX id, ``LicenseRef-...`` or ``unknown``."""
    subject_namespace: str
    """Patients of equal id are one person within it."""
    card: str = "{}"
    """`source_cards.CardFacts` as JSON; ``{}`` when nothing was told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRow:
    """One file that was looked at: the ledger that makes a second ingest fast."""

    file_id: str
    """Keyed id of the absolute path."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, ns since the epoch."""
    source: str
    """Name of the source."""
    unit_id: str
    """Keyed id of the series, or `file_id` of a file that stands alone."""
    instance: str
    """Short keyed id of the DICOM instance; copies of one image share it. Empty otherwise."""
    code: str
    """Error code when the file is quarantined, else empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRow:
    """The split of one subject, written once and never changed."""

    subject_id: str
    """The subject."""
    split: Split
    """Its split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetiredRow:
    """A volume of an earlier commit that its own file no longer holds, or that was damaged."""

    volume_id: str
    """The volume."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRow:
    """New labels of a stored volume, from `core-mri data label --relabel`; the last ones count."""

    volume_id: str
    """The volume."""
    region: str
    """As in `VolumeRow`, and so all that follow."""
    region_by: str
    region_confidence: float
    sequence: str
    sequence_by: str
    sequence_confidence: float
    plane_by: str
    plane_confidence: float
    contrast: str
    contrast_by: str
    contrast_confidence: float
    vendor: str
    field_strength_t: float
    votes: str


RELABELED = tuple(f.name for f in dataclasses.fields(LabelRow) if f.name != "volume_id")
"""Columns of a volume that newer labels replace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FingerprintRow:
    """What one slice of an image looks like, from `core-mri data dedupe`."""

    volume_id: str
    """The volume."""
    index: int
    """0-based position of the slice."""
    phash: int
    """`perceptual_hash.slice_hashes`, its 64 bits read as a signed number."""
    detail: float
    """What the hash rests on; near 0 for empty slices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateRow:
    """Two volumes of different subjects that show the same scan: the subjects are one person."""

    volume_id: str
    """The volume with the smaller id."""
    other_id: str
    """The other volume."""
    kind: Literal["exact", "near"]
    """Same voxels, or slices that look the same."""
    shared: int
    """Slices in common."""
    compared: int
    """Slices of the smaller volume that show something."""
    correlation: float
    """Median correlation of the slices in common, 1 for exact ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityRow:
    """One distance of a task to pretraining data, as `core-mri data similarity` found it then."""

    when: str
    """UTC, ISO 8601."""
    task: str
    """Name of the cohort."""
    task_digest: str
    """Its hash."""
    pretraining: str
    """Name of the cohort or of the weights folder."""
    pretraining_digest: str
    """Hash of the cohort or of the tensors."""
    encoder: str
    """Digest of the encoder whose features were compared; empty for formulas alone."""
    shared_patients: int
    """Patients of the task in the pretraining data."""
    features: str
    """As `similarity.measure.Measurement`, and so all that follow."""
    distance: str
    closer: str
    value: float | None
    low: float | None
    high: float | None
    null: float | None
    null_high: float | None
    slices: int
    patients: int
    pretraining_slices: int
    pretraining_patients: int
    refused: str


TABLES: dict[str, type] = {
    "sources": SourceRow,
    "shards": ShardRow,
    "volumes": VolumeRow,
    "slices": SliceRow,
    "files": FileRow,
    "splits": SplitRow,
    "retired": RetiredRow,
    "labels": LabelRow,
    "fingerprints": FingerprintRow,
    "duplicates": DuplicateRow,
    "similarities": SimilarityRow,
}
"""Parquet file name (without suffix) in each commit folder -> its row."""


def arrow_schema(row: type) -> pyarrow.Schema:
    """Parquet schema of a row class, with ``commit`` behind its own fields."""
    import pyarrow

    scalars = {
        str: pyarrow.string(),
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
    }
    columns = []
    for name, hint in get_type_hints(row).items():
        kind, inner = get_origin(hint), get_args(hint)
        if kind is tuple:
            columns.append((name, pyarrow.list_(scalars[inner[0]])))
        elif kind is Literal:
            columns.append((name, pyarrow.string()))
        else:
            columns.append((name, scalars[inner[0] if inner else hint]))
    return pyarrow.schema([*columns, ("commit", pyarrow.int64())])


def to_table(row: type, rows: Sequence[object], commit: int) -> pyarrow.Table:
    """Rows as an Arrow table."""
    import pyarrow

    names = [field.name for field in dataclasses.fields(row)]
    columns: dict[str, list[object]] = {n: [getattr(item, n) for item in rows] for n in names}
    columns["commit"] = [commit] * len(rows)
    return pyarrow.table(columns, schema=arrow_schema(row))


def from_table(row: type[Row], table: pyarrow.Table) -> list[Row]:
    """The inverse of `to_table`; columns that the row does not have are ignored."""
    hints = get_type_hints(row)
    columns: list[Iterable[object]] = []
    for name, hint in hints.items():
        values = table.column(name).to_pylist()
        columns.append(map(tuple, values) if get_origin(hint) is tuple else values)
    return [row(**dict(zip(hints, values, strict=True))) for values in zip(*columns, strict=True)]
