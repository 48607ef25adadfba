"""A small folder of synthetic scans, and a registry made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core_mri.volume import Volume
from data_registry import IngestConfig, IngestReport, Registry, Source, ingest

KEY = "c0" * 32

Ingest = Callable[..., IngestReport]


def save_phantom(
    path: Path, region: str, subject: int, sequence: str = "T1", *, label: bool = False
) -> Volume:
    """Write one small phantom (or its labels) as NIfTI."""
    from core_mri.files.nifti import write_nifti
    from core_mri.physics.phantoms import phantom_volume

    volume = phantom_volume(region, subject, sequence, size=32, num_slices=4)[int(label)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(volume, path)
    return volume


@pytest.fixture
def save() -> Callable[..., Volume]:
    return save_phantom


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder for files to de-identify."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "project.key"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def run_ingest(key_file: Path) -> Ingest:
    """Ingest folders, in this process unless told otherwise, all with the same key."""

    def run(registry: Path, *roots: Path, **changes: object) -> IngestReport:
        source = changes.pop("source", {})
        assert isinstance(source, dict)
        sources = tuple(
            Source(**{"name": "phantoms", "licence": "CC0-1.0", "role": "by-name", **source,
                      "root": str(root)})
            for root in roots
        )  # fmt: skip
        options = {"sources": sources, "key_file": key_file, "jobs": 1, **changes}
        return ingest(IngestConfig(registry=registry, **options))  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients: T1 and labels as NIfTI each, a T2 of the first, and one DICOM series."""
    from core_mri.files.dicom_write import write_dicom_series
    from core_mri.physics.phantoms import phantom_volume

    folder = tmp_path_factory.mktemp("scans")
    for subject in range(6):
        region = ("brain", "knee")[subject % 2]
        patient = folder / f"patient{subject:02d}"
        save_phantom(patient / f"{region}_T1.nii.gz", region, subject)
        save_phantom(patient / f"{region}_mask.nii.gz", region, subject, label=True)
    save_phantom(folder / "patient00" / "brain_T2.nii.gz", "brain", 0, "T2")
    image, _ = phantom_volume("prostate", 0, "T2", size=32, num_slices=4)
    facts = {
        "Modality": "MR", "PatientID": "HOSPITAL-4711", "PatientName": "Example^Name",
        "Manufacturer": "SIEMENS", "SeriesDescription": "t2_tse_tra prostate",
        "MagneticFieldStrength": 3.0, "EchoTime": 101.0, "RepetitionTime": 4000.0,
    }  # fmt: skip
    write_dicom_series(image, folder / "dicom", facts=facts, seed="series")
    return folder


@pytest.fixture(scope="session")
def registry(scans: Path, run_ingest: Ingest, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    path = tmp_path_factory.mktemp("registry") / "reg"
    run_ingest(path, scans)
    return Registry.open(path)
