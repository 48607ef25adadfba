from __future__ import annotations

from pathlib import Path

import pytest

from core_mri.errors import ConfigError
from data_registry.source_list import PACKAGED, Source, load_sources


def source(**changes: object) -> Source:
    return Source(**{"name": "a", "licence": "MIT", "root": "/data", **changes})  # type: ignore[arg-type]


def code_of(action) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.code


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "path", "taken"),
        [
            ("*.nii.gz", "a/b/t1.nii.gz", True),
            ("*.nii.gz", "a/b/t1.nii", False),
            ("a/*.dcm", "a/1.dcm", True),
            ("a/*.dcm", "a/b/1.dcm", False),
            ("a/**/*.dcm", "a/1.dcm", True),
            ("a/**/*.dcm", "a/b/c/1.dcm", True),
            ("a/**", "a/b/c/1", True),
            ("a/**", "ab/1", False),
            ("case?.nii", "case1.nii", True),
            ("case?.nii", "case12.nii", False),
            ("t1.nii", "t1xnii", False),
        ],
    )
    def test_include(self, pattern: str, path: str, taken: bool) -> None:
        assert source(include=(pattern,)).takes(path) is taken
        assert source(exclude=(pattern,)).takes(path) is not taken


class TestRole:
    @pytest.mark.parametrize(
        ("path", "role"),
        [
            ("scans/patient1/t1.nii.gz", "image"),
            ("scans/patient1/t1_mask.nii.gz", "label"),
            ("scans/patient1/Segmentation.nii", "label"),
            ("scans/labelsTr/case1.nii.gz", "label"),
            ("scans/labels/case1.nii.gz", "label"),
            ("scans/vosegus/t1.nii.gz", "image"),
        ],
    )
    def test_by_name(self, path: str, role: str) -> None:
        assert source(role="by-name").voxels_of(path) == role
        assert source().voxels_of(path) == "image"


class TestSubject:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("root/sub-01/anat/sub-01_T1w.nii.gz", "root/sub-01/ses-2/sub-01_T2w.nii.gz"),
            ("root/rawdata/sub-01_T1w.nii.gz", "root/derivatives/labels/sub-01_dseg.nii.gz"),
            ("root/patient07/t1.nii.gz", "root/patient07/flair.nii.gz"),
            ("root/images/case_12.nii.gz", "root/labels/case_12.nii.gz"),
            ("root/images/case_12_t1.nii.gz", "root/images/CASE_12_t2.nii.gz"),
            ("root/anna/visit1/t1.nii.gz", "root/anna/visit2/t1.nii.gz"),
            ("root/t1.nii.gz", "root/t2.nii.gz"),
            ("root/hippocampus_001.nii.gz", "root/hippocampus_002.nii.gz"),
        ],
    )
    def test_files_of_one_patient_are_one_subject(self, one: str, other: str) -> None:
        """The last two may be one patient or two; then one is the safe answer."""
        assert source().subject_of(one, {}) == source().subject_of(other, {})

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("root/sub-01/t1.nii.gz", "root/sub-011/t1.nii.gz"),
            ("root/patient1/t1.nii.gz", "root/patient12/t1.nii.gz"),
            ("root/anna/t1.nii.gz", "root/berta/t1.nii.gz"),
        ],
    )
    def test_known_patients_are_apart(self, one: str, other: str) -> None:
        assert source().subject_of(one, {}) != source().subject_of(other, {})

    def test_order_of_what_decides(self) -> None:
        path = "root/sub-01/t1.nii.gz"
        by_path = source(subject="(?P<subject>t[0-9])")
        assert by_path.subject_of(path, {"PatientID": "X"}) == ("a", "t1")
        assert source().subject_of(path, {"PatientID": " X "}) == ("a", "X")
        assert source().subject_of(path, {}) == ("a", "01")
        study = {"StudyInstanceUID": "1.2"}
        assert source().subject_of("root/x/1.dcm", study) == ("a", "study:1.2")
        assert source().subject_of("root/x/1.dcm", {}) == ("a", "folder:x")

    def test_equal_ids_of_two_sources_are_two_people(self) -> None:
        facts = {"PatientID": "0001"}
        first, second = source(name="a"), source(name="b")
        assert first.subject_of("r/x", facts) != second.subject_of("r/x", facts)
        shared = [source(name=n, subject_namespace="hospital") for n in "ab"]
        assert shared[0].subject_of("r/x", facts) == shared[1].subject_of("r/x", facts)


class TestSplits:
    @pytest.mark.parametrize(
        ("path", "split"),
        [
            ("ACDC/database/testing/patient101/a.nii.gz", "test"),
            ("testing/patient101/a.nii.gz", "test"),
            ("ACDC/database/training/patient001/a.nii.gz", None),
            ("ACDC/retesting/patient001/a.nii.gz", None),
        ],
    )
    def test_official_ones(self, path: str, split: str | None) -> None:
        assert source(splits={"test": "(?:^|/)testing/"}).split_of(path) == split

    def test_wrong_pattern(self) -> None:
        assert code_of(lambda: source(splits={"test": "("})) == "CONFIG-01"


class TestChecks:
    def test_licences(self) -> None:
        for licence in ("CC-BY-4.0", "unknown", "LicenseRef-local", "MIT AND Apache-2.0"):
            assert source(licence=licence).licence == licence
        assert code_of(lambda: source(licence="CC BY 4.0")) == "CONFIG-01"
        assert code_of(lambda: source(licence="")) == "CONFIG-01"

    def test_root_or_package(self) -> None:
        assert code_of(lambda: source(package="nibabel")) == "CONFIG-05"
        assert code_of(lambda: source(root="")) == "CONFIG-05"

    def test_subject_pattern(self) -> None:
        assert code_of(lambda: source(subject="(")) == "CONFIG-01"
        assert code_of(lambda: source(subject="[0-9]+")) == "CONFIG-01"

    def test_missing_package(self) -> None:
        missing = source(root="", package="no_such_package")
        assert code_of(missing.folder) == "CONFIG-06"
        assert source(root="", package="data_registry").folder() == PACKAGED.parent


class TestLoad:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "list.yaml"
        path.write_text(text)
        return path

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path, "sources:\n  - {name: a, licence: MIT, rot: x}\n  - {licence: MIT, root: y}\n"
        )
        with pytest.raises(ConfigError, match=r"(?s)sources\.0\.rot.*sources\.1\.name") as caught:
            load_sources(path)
        assert caught.value.code == "CONFIG-01"

    def test_no_file(self) -> None:
        assert code_of(lambda: load_sources("embeded")) == "CONFIG-02"

    def test_empty(self, tmp_path: Path) -> None:
        assert code_of(lambda: load_sources(self.write(tmp_path, "sources: []"))) == "CONFIG-01"

    def test_roots(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "sources: [{name: a, licence: MIT, root: %s}]"
        path = self.write(tmp_path, text % "scans")
        assert load_sources(path)[0].folder() == tmp_path / "scans"
        monkeypatch.setenv("MY_SCANS", str(tmp_path / "elsewhere"))
        path = self.write(tmp_path, text % "'${MY_SCANS}/mr'")
        assert load_sources(path)[0].folder() == tmp_path / "elsewhere" / "mr"
        monkeypatch.delenv("MY_SCANS")
        with pytest.raises(ConfigError, match="MY_SCANS"):
            load_sources(path)

    @pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGED.glob("*.yaml")))
    def test_packaged_lists_are_valid(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORE_MRI_DATA", "/data")
        assert load_sources(name)


class TestSpacing:
    @pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
    def test_must_be_positive(self, wrong: float) -> None:
        with pytest.raises(ConfigError, match=r"CONFIG-01.*spacing_mm"):
            source(spacing_mm=(1.0, wrong, 1.0))
