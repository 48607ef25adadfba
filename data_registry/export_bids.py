"""Names, sidecars and tables of the Brain Imaging Data Structure (BIDS 1.10.0).

Images whose sequence has a suffix in BIDS go to ``sub-X/anat``; every other image, and every label
map, goes below ``derivatives``: nothing is left out and the raw part stays valid. Source: BIDS
specification, "Magnetic Resonance Imaging" and "Imaging data types" of "Derivatives".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.version import __version__
from data_registry.governance.licences import mixture

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

SUFFIXES = {
    "T1": "T1w",
    "T1 contrast": "T1w",
    "T2": "T2w",
    "T2*": "T2starw",
    "PD": "PDw",
    "FLAIR": "FLAIR",
    "MRA": "angio",
    "TOF": "angio",
    "T1 map": "T1map",
    "T2 map": "T2map",
}
"""Sequence of the catalogue -> suffix of BIDS; what is not here goes to ``derivatives/other``."""

SECONDS = {"EchoTime", "RepetitionTime", "InversionTime"}
"""Milliseconds in DICOM and in the catalogue, seconds in BIDS."""
AS_THEY_ARE = (
    "FlipAngle", "MagneticFieldStrength", "Manufacturer", "MRAcquisitionType", "ScanningSequence",
    "SequenceVariant", "BodyPartExamined", "SeriesDescription", "ProtocolName",
)  # fmt: skip
REGION, SEQUENCE = "CoreMRIRegion", "CoreMRISequence"
"""Keys of ours in sidecars: what the catalogue says, which an import believes."""
MODEL = ("ManufacturerModelName", "ManufacturersModelName")


def bids_paths(registry: Registry, rows: list[VolumeRow]) -> Iterator[tuple[VolumeRow, Path]]:
    """Each volume with its path; runs are numbered in the order of volume ids.

    Args:
        registry: Tells which image a label map belongs to.
        rows: Images and label maps, in the order of their ids.
    """
    runs: Counter[tuple[str, str]] = Counter()
    stems: dict[str, str] = {}
    labels = []
    for row in rows:
        if row.role == "label":
            labels.append(row)
            continue
        subject = f"sub-{row.subject_id}"
        suffix = SUFFIXES.get(row.sequence)
        entities = "ce-gadolinium_" if row.sequence == "T1 contrast" else ""
        runs[subject, f"{entities}{suffix}"] += 1
        run = f"run-{runs[subject, f'{entities}{suffix}']:02d}"
        stem = f"{subject}_{entities}{run}"
        if suffix is None:
            stem = f"{subject}_{run}_desc-{row.volume_id}"
            yield row, Path("derivatives/other") / subject / "anat" / f"{stem}_mri.nii.gz"
        else:
            yield row, Path(subject) / "anat" / f"{stem}_{suffix}.nii.gz"
        stems[row.volume_id] = stem
    for row in labels:
        subject = f"sub-{row.subject_id}"
        image = next((i for i in registry.images_of(row) if i.volume_id in stems), None)
        stem = stems[image.volume_id] if image else subject
        stem = stem.split("_desc-")[0]
        name = f"{stem}_desc-{row.volume_id}_dseg.nii.gz"
        yield row, Path("derivatives/labels") / subject / "anat" / name


def sidecar(row: VolumeRow, path: Path) -> Iterator[tuple[Path, str]]:
    """The JSON file beside an image, and the table of the values of a label map.

    Args:
        row: The volume.
        path: Its ``.nii.gz``.
    """
    stem = path.name.removesuffix(".nii.gz")
    facts = json.loads(row.facts)
    content: dict[str, object] = {}
    for name, value in facts.items():
        if name in SECONDS and isinstance(value, (int, float)):
            content[name] = round(value / 1000, 9)
        elif name in AS_THEY_ARE:
            content[name] = value
        elif name == MODEL[0]:
            content[MODEL[1]] = value
    if row.role == "label" and (names := facts.get("LabelNames")):
        pairs = [part.partition("=") for part in str(names).split(";")]
        lines = ["index\tname", *(f"{value}\t{name}" for value, _, name in pairs)]
        yield path.with_name(f"{stem}.tsv"), "\n".join(lines) + "\n"
    content |= {"CoreMRIVolume": row.volume_id, "License": row.licence}
    content |= {REGION: row.region, SEQUENCE: row.sequence}
    yield path.with_name(f"{stem}.json"), json.dumps(content, indent=2, sort_keys=True) + "\n"


def describe_dataset(rows: list[VolumeRow]) -> Iterator[tuple[Path, str]]:
    """`dataset_description.json` of the whole and of each derivative, participants, README."""
    licence = mixture(row.licence for row in rows)
    maker = {"Name": "core-mri", "Version": __version__}
    sources = sorted({row.source for row in rows})
    for folder, name in (
        ("", "core-mri export"),
        ("derivatives/other", "Images without a suffix in BIDS"),
        ("derivatives/labels", "Label maps"),
    ):
        description: dict[str, object] = {
            "Name": name,
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative" if folder else "raw",
            "License": licence,
            "GeneratedBy": [maker],
        }
        if folder and not any(_in_folder(row, folder) for row in rows):
            continue
        text = json.dumps(description, indent=2) + "\n"
        yield Path(folder) / "dataset_description.json", text
    subjects = {row.subject_id: row for row in rows}
    lines = ["participant_id\tsplit\tsource"]
    lines += [f"sub-{i}\t{row.split}\t{row.source}" for i, row in sorted(subjects.items())]
    yield Path("participants.tsv"), "\n".join(lines) + "\n"
    columns = {
        "split": {"Description": "Part of the data that the patient belongs to."},
        "source": {"Description": "Source of the patient's first scan in the registry."},
    }
    yield Path("participants.json"), json.dumps(columns, indent=2) + "\n"
    yield (
        Path("README"),
        "Exported by core-mri from a registry of de-identified scans.\n"
        f"Sources: {', '.join(sources)}. Licence: {licence} (per source: LICENSE; "
        "per file: sidecars and manifest.csv).\nNot defaced unless the registry says so.\n",
    )
    yield Path(".bidsignore"), "manifest.csv\nexport.json\n"


def _in_folder(row: VolumeRow, folder: str) -> bool:
    if folder == "derivatives/labels":
        return row.role == "label"
    return row.role == "image" and row.sequence not in SUFFIXES
