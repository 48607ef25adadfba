"""Real files: nothing of their patients survives, pixels and timing stay, all stay valid."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from core_mri.errors import DataError
from data_registry.deidentify.cli import main
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.profile import PROFILES
from data_registry.deidentify.verify import find_leaks
from data_registry.deidentify.verify_cli import main as verify
from tests.data_registry.deid_corpus.score import found

KEY = bytes(range(32))
DATA = os.environ.get("CORE_MRI_DATA")
TECHNICAL = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "MagneticFieldStrength", "ImagingFrequency", "PixelBandwidth", "EchoTrainLength",
    "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "Rows", "Columns", "BitsStored",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "InstanceNumber",
    "SeriesNumber", "PatientPosition", "Modality", "PhotometricInterpretation", "NumberOfFrames",
    "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "SOPClassUID", "ImageType",
    "DiffusionBValue", "DiffusionGradientOrientation", "EffectiveEchoTime", "TriggerTime",
)  # fmt: skip


def packaged() -> list[Path]:
    """Images of MR, segmentations and reports that come with pydicom."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"
    patterns = ("MR*.dcm", "*SR.dcm", "reportsi.dcm", "emri*.dcm", "liver*.dcm", "*overlay*.dcm")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def real() -> list[Path]:
    """DICOM files of CORE_MRI_DATA: the special ones, and three of each series."""
    if not DATA:
        return []
    seen: Counter[Path] = Counter()
    chosen = []
    for path in sorted(Path(DATA).rglob("*.dcm")):
        seen[path.parent] += 1
        if seen[path.parent] <= 3 or "dicom" in path.relative_to(DATA).parts:
            chosen.append(path)
    return chosen


def values(dataset: Dataset) -> Iterator[tuple[str, str]]:
    for element in dataset:
        if element.keyword == "IconImageSequence" or element.tag.is_private:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from values(item)
        elif element.keyword in TECHNICAL:
            yield element.keyword, str(element.value)


def check(path: Path, profile: str) -> bool:
    """Whether the file had an output; asserts that the output is right."""
    content = path.read_bytes()
    try:
        clean = deidentify_dicom(content, KEY, PROFILES[profile]).content
    except DataError:
        return False
    assert find_leaks(content, clean) == [], path.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old, new = (pydicom.dcmread(io.BytesIO(part), force=True) for part in (content, clean))
        if "PixelData" in old:
            assert new.PixelData == old.PixelData[: len(new.PixelData)], path.name
        assert Counter(values(new)) == Counter(values(old)), path.name
        names = {
            part
            for element in old.iterall()
            if (element.VR in ("PN", "UI", "AE") or element.keyword in ("PatientID", "StudyDate"))
            and element.keyword != "CodingSchemeUID"
            for part in str(element.value or "").replace("^", " ").split()
            if len(part) > 5 and not part.startswith("1.2.840.10008.")
        }
    assert found(sorted(names), clean) == [], path.name
    return True


@pytest.mark.parametrize("profile", PROFILES)
def test_packaged_files(profile: str) -> None:
    assert sum(check(path, profile) for path in packaged()) >= 8


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="CORE_MRI_DATA is not set to a folder of real scans")
@pytest.mark.parametrize("profile", PROFILES)
def test_real_files(profile: str) -> None:
    assert sum(check(path, profile) for path in real()) >= 40


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="CORE_MRI_DATA is not set to a folder of real scans")
def test_names_of_the_tcia_series(tmp_path: Path) -> None:
    """The series has fictional names; the whole way, then the verifier on its own."""
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("77" * 32)
    source, out = Path(str(DATA)) / "brain_tcia_btp003", tmp_path / "out"
    assert main([str(source), str(out), "--key-file", str(key), "--jobs", "1"]) == 0
    assert verify([str(source), str(out), "--jobs", "1"]) == 0
    original = pydicom.dcmread(next(iter(sorted(source.rglob("*.dcm")))), stop_before_pixels=True)
    words = [w for w in str(original.PatientName).replace("^", " ").split() if len(w) > 3]
    assert words
    everything = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert found([*words, str(original.PatientID)], everything) == []


def _errors(content: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        done = subprocess.run(["dciodvfy", file.name], capture_output=True, check=False)
    return sum(line.startswith(b"Error") for line in (done.stdout + done.stderr).splitlines())


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) not installed")
@pytest.mark.parametrize("profile", PROFILES)
def test_no_file_gets_less_valid(profile: str) -> None:
    worse = []
    for path in [*packaged(), *real()]:
        content = path.read_bytes()
        try:
            clean = deidentify_dicom(content, KEY, PROFILES[profile]).content
        except DataError:
            continue
        before, after = _errors(content), _errors(clean)
        if after > before:
            worse.append((path.name, before, after))
    assert worse == []
