"""Croissant 1.1: what a registry or a cohort holds, as JSON-LD that programs can load.

Source: Croissant Format Specification 1.1 and its RAI vocabulary, MLCommons. The catalogue goes
along as two Parquet files, so that the records can be read without core-mri; voxels stay in shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VOLUMES = {
    "volume_id": "Id of the volume.",
    "subject_id": "Keyed pseudonym of the patient; splits follow it.",
    "role": "image, label (an integer mask) or kspace (raw data).",
    "split": "train, val or test.",
    "source": "Where it came from.",
    "licence": "SPDX expression of the source.",
    "region": "Body region, or unknown.",
    "sequence": "Sequence family, or unknown.",
    "plane": "Plane of the stored slices.",
    "contrast": "Acquired with a contrast agent: yes, no or unknown.",
    "vendor": "Maker of the scanner, or unknown.",
    "field_strength_t": "Field strength in tesla, 0 when unknown.",
    "synthetic": "Made by a program, not by a scanner.",
    "num_slices": "Number of slices.",
    "rows": "Rows of a slice.",
    "columns": "Columns of a slice.",
    "dtype": "Type of the voxels.",
    "shard": "File name of its shard.",
    "dataset": "HDF5 dataset in the shard.",
}
"""Columns of `volumes.parquet`, and what they mean."""

SLICES = {
    "volume_id": "The volume.",
    "index": "0-based position along the first stored axis.",
    "foreground": "Fraction of voxels brighter than a tenth of the volume's window.",
}
"""Columns of `slices.parquet`."""

_TYPES = {
    "synthetic": "sc:Boolean",
    "field_strength_t": "sc:Float",
    "foreground": "sc:Float",
} | dict.fromkeys(("num_slices", "rows", "columns", "index"), "sc:Integer")

_PLAIN = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject",
    "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField",
    "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
    "source", "subField", "transform",
)  # fmt: skip
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _PLAIN},
}


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the distribution."""

    path: str
    """Relative to the metadata."""
    form: str
    """Media type."""
    size: int
    """Bytes."""
    sha256: str


def croissant(
    *,
    name: str,
    description: str,
    version: str,
    published: str,
    licences: Sequence[str],
    citation: str,
    files: Sequence[File],
    rai: Mapping[str, str],
) -> dict[str, Any]:
    """The JSON-LD document.

    Args:
        name: Of the data set.
        description: One sentence.
        version: Semantic version.
        published: ISO 8601 date.
        licences: SPDX expressions of the sources.
        citation: What to cite; empty when nothing is known.
        files: `volumes.parquet`, `slices.parquet`, and the shards.
        rai: Properties of the RAI vocabulary, without their prefix.
    """
    known = {"citeAs": citation} if citation else {}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": name,
        "description": description,
        "version": version,
        "datePublished": published,
        "license": list(licences),
        "isLiveDataset": False,
        **known,
        **{f"rai:{key}": text for key, text in rai.items()},
        "distribution": [*map(_file, files), _shards()],
        "recordSet": [
            _records("volumes", "A volume each.", VOLUMES, ["volume_id"]),
            _records("slices", "A slice each.", SLICES, ["volume_id", "index"]),
        ],
    }


def _file(file: File) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.size} B",
        "encodingFormat": file.form,
        "sha256": file.sha256,
    }


def _shards() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "HDF5 files, a dataset a volume, of which `volumes` names file and dataset.",
        "encodingFormat": "application/x-hdf5",
        "includes": "shards/*.h5",
    }


def _records(
    name: str, description: str, columns: Mapping[str, str], key: Sequence[str]
) -> dict[str, Any]:
    fields = []
    for column, meaning in columns.items():
        field: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": column,
            "description": meaning,
            "dataType": _TYPES.get(column, "sc:Text"),
            "source": {
                "fileObject": {"@id": f"{name}.parquet"},
                "extract": {"column": column},
            },
        }
        if name == "slices" and column == "volume_id":
            field["references"] = {"field": {"@id": "volumes/volume_id"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": [{"@id": f"{name}/{column}"} for column in key],
        "field": fields,
    }
