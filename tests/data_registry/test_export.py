"""Volumes of a registry as files of other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.errors import CoreMRIError
from core_mri.files.nifti import read_nifti
from data_registry import Registry
from data_registry.export import ExportConfig, ExportReport, Format, export
from data_registry.export_bids import SUFFIXES


def run(registry: Registry, out: Path, form: Format, where: str = "") -> ExportReport:
    return export(ExportConfig(registry=registry.path, out=out, format=form, where=where))


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


class TestNifti:
    def test_voxels_and_geometry_come_back(self, registry: Registry, tmp_path: Path) -> None:
        assert run(registry, tmp_path / "out", "nifti") == ExportReport(14, 0, 0)
        for line in manifest(tmp_path / "out"):
            stored = registry.read(line["volume_id"])
            written = read_nifti(tmp_path / "out" / line["path"])
            assert written.orientation == "RAS"
            back = written.reorient(stored.orientation)
            assert back.same_grid(stored)
            np.testing.assert_array_equal(back.array, stored.array)

    def test_labels_name_their_image(self, registry: Registry, tmp_path: Path) -> None:
        run(registry, tmp_path / "out", "nifti")
        lines = manifest(tmp_path / "out")
        images = {line["volume_id"]: line for line in lines if line["role"] == "image"}
        labels = [line for line in lines if line["role"] == "label"]
        assert len(labels) == 6
        for line in labels:
            named = line["labels_of"].split()
            assert named
            assert {images[i]["subject_id"] for i in named} == {line["subject_id"]}

    def test_condition(self, registry: Registry, tmp_path: Path) -> None:
        report = run(registry, tmp_path / "out", "nifti", "region = 'knee'")
        assert report.written == len(registry.volumes("region = 'knee'")) == 6

    def test_interrupted_export_goes_on(self, registry: Registry, tmp_path: Path) -> None:
        run(registry, tmp_path / "out", "nifti")
        files = sorted(p for p in (tmp_path / "out").rglob("*.nii.gz"))
        whole = {p: p.read_bytes() for p in files}
        files[3].unlink()
        assert run(registry, tmp_path / "out", "nifti") == ExportReport(1, 13, 0)
        assert {p: p.read_bytes() for p in files} == whole


class TestBids:
    @pytest.fixture
    def out(self, registry: Registry, tmp_path: Path) -> Path:
        run(registry, tmp_path / "bids", "bids")
        return tmp_path / "bids"

    def test_every_raw_file_is_named_as_bids_asks(self, out: Path) -> None:
        validator = pytest.importorskip("bids_validator").BIDSValidator()
        raw = [p for p in out.rglob("*") if p.is_file() and "derivatives" not in p.parts]
        names = ["/" + p.relative_to(out).as_posix() for p in raw]
        ours = {"/manifest.csv", "/export.json", "/.bidsignore"}
        assert [n for n in names if n not in ours and not validator.is_bids(n)] == []
        assert sum(n.endswith(".nii.gz") for n in names) == 8

    def test_times_are_seconds(self, registry: Registry, out: Path) -> None:
        (line,) = [m for m in manifest(out) if "prostate" in m["region"]]
        beside = out / line["path"].replace(".nii.gz", ".json")
        content = json.loads(beside.read_text())
        facts = json.loads(registry.volume(line["volume_id"]).facts)
        assert content["EchoTime"] == pytest.approx(facts["EchoTime"] / 1000) == 0.101
        assert content["MagneticFieldStrength"] == 3.0
        assert "PatientID" not in content

    def test_labels_carry_the_name_of_their_image(self, out: Path) -> None:
        lines = {line["volume_id"]: line for line in manifest(out)}
        for line in lines.values():
            if line["role"] == "label":
                image = lines[line["labels_of"].split()[0]]
                stem = Path(image["path"]).name.rpartition("_")[0]
                assert Path(line["path"]).name.startswith(stem)
                assert line["path"].startswith("derivatives/labels/sub-")

    def test_participants_are_the_subjects(self, registry: Registry, out: Path) -> None:
        lines = (out / "participants.tsv").read_text().splitlines()[1:]
        subjects = {row.subject_id for row in registry.volumes()}
        assert {line.split("\t")[0] for line in lines} == {f"sub-{s}" for s in subjects}
        description = json.loads((out / "dataset_description.json").read_text())
        assert (description["DatasetType"], description["License"]) == ("raw", "CC0-1.0")

    def test_a_sequence_without_suffix_is_not_lost(self, tmp_path: Path, run_ingest, save) -> None:
        save(tmp_path / "in" / "patient1" / "scan.nii.gz", "brain", 0)
        source = {"sequence": "MT"}
        run_ingest(tmp_path / "reg", tmp_path / "in", source=source)
        assert "MT" not in SUFFIXES
        run(Registry.open(tmp_path / "reg"), tmp_path / "out", "bids")
        (line,) = manifest(tmp_path / "out")
        assert line["path"].startswith("derivatives/other/")
        assert (tmp_path / "out" / line["path"]).is_file()


class TestRefused:
    def test_folder_of_something_else(self, registry: Registry, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(CoreMRIError, match="CONFIG-03"):
            run(registry, tmp_path, "nifti")
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_folder_of_another_export(self, registry: Registry, tmp_path: Path) -> None:
        run(registry, tmp_path / "out", "nifti", "region = 'knee'")
        with pytest.raises(CoreMRIError, match="CONFIG-03"):
            run(registry, tmp_path / "out", "nifti")

    def test_nothing_that_the_format_can_hold(self, registry: Registry, tmp_path: Path) -> None:
        with pytest.raises(CoreMRIError, match=r"DATA-09.*kspace"):
            run(registry, tmp_path / "out", "fastmri")
        assert not (tmp_path / "out").exists()

    def test_wrong_condition(self, registry: Registry, tmp_path: Path) -> None:
        with pytest.raises(CoreMRIError, match="CONFIG-01"):
            run(registry, tmp_path / "out", "nifti", "colour = 1")


class TestCommand:
    def test_says_what_was_written(
        self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["data", "export", "nifti", "--registry", str(registry.path)]
        assert main([*words, "--out", str(tmp_path / "out")]) == 0
        assert "14 files written" in capsys.readouterr().out
        assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
        told = {"written": 0, "kept": 14, "other_roles": 0}
        told |= {"licence": "CC0-1.0", "noncommercial": {}}
        assert json.loads(capsys.readouterr().out) == told

    def test_unknown_format_is_wrong_usage(self, registry: Registry, tmp_path: Path) -> None:
        words = ["data", "export", "zarr", "--registry", str(registry.path), "--out", str(tmp_path)]
        assert main(words) == 2
