"""nnU-Net, MONAI and WebDataset layouts: complete, by patient, and readable by what reads them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError
from core_mri.files.nifti import read_nifti
from data_registry import Registry, SliceDataset
from data_registry.export import ExportConfig, ExportReport, Format, export
from data_registry.export_webdataset import Tars


def run(registry: Registry, out: Path, form: Format, where: str = "") -> ExportReport:
    return export(ExportConfig(registry=registry.path, out=out, format=form, where=where))


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, run_ingest) -> Registry:
    """Twelve patients with an image and a label map whose values have gaps and names."""
    from tests.data_registry.conftest import save_phantom

    folder = tmp_path_factory.mktemp("labeled")
    for subject in range(12):
        patient = folder / "in" / f"patient{subject:02d}"
        save_phantom(patient / "brain_T1.nii.gz", "brain", subject)
        save_phantom(patient / "brain_mask.nii.gz", "brain", subject, label=True)
    names = {value: f"structure {value}" for value in range(1, 20)}
    run_ingest(folder / "reg", folder / "in", source={"label_values": names})
    registry = Registry.open(folder / "reg")
    assert {row.split for row in registry.volumes()} == {"train", "val", "test"}
    return registry


class TestNnunet:
    @pytest.fixture
    def out(self, labeled: Registry, tmp_path: Path) -> Path:
        run(labeled, tmp_path / "Dataset001_Brain", "nnunet")
        return tmp_path / "Dataset001_Brain"

    def test_every_case_has_image_and_label_on_one_grid(self, out: Path) -> None:
        content = json.loads((out / "dataset.json").read_text())
        labels = sorted((out / "labelsTr").iterdir())
        assert len(labels) == content["numTraining"] > 0
        assert len(labels) + len(list((out / "labelsTs").iterdir())) == 12
        for path in labels:
            image = read_nifti(out / "imagesTr" / path.name.replace(".nii", "_0000.nii"))
            assert image.same_grid(read_nifti(path))

    def test_labels_are_numbered_without_gaps_and_go_back(
        self, labeled: Registry, out: Path
    ) -> None:
        content = json.loads((out / "dataset.json").read_text())
        values = content["core_mri_label_values"]
        assert list(content["labels"].values()) == list(range(len(values)))
        for name, number in content["labels"].items():
            assert name == ("background" if number == 0 else f"structure {values[str(number)]}")
        for path in (out / "labelsTr").iterdir():
            written = read_nifti(path).array
            assert set(np.unique(written)) <= set(range(len(values)))
            image = labeled.volume(path.name.split("_")[1].split(".")[0])
            (label,) = labeled.labels_of(image)
            lookup = np.array([values[str(i)] for i in range(len(values))])
            stored = labeled.read(label).reorient("RAS").array
            np.testing.assert_array_equal(lookup[written], stored)

    def test_folds_are_of_whole_patients(self, out: Path) -> None:
        folds = json.loads((out / "splits_final.json").read_text())
        names = {p.name.removesuffix(".nii.gz") for p in (out / "labelsTr").iterdir()}
        assert sorted(name for fold in folds for name in fold["val"]) == sorted(names)
        for fold in folds:
            assert set(fold["train"]) | set(fold["val"]) == names
            patients = [{name.split("_")[0] for name in fold[part]} for part in ("train", "val")]
            assert not patients[0] & patients[1]

    def test_test_patients_are_in_no_training_folder(self, labeled: Registry, out: Path) -> None:
        test = {row.subject_id for row in labeled.volumes("split = 'test'")}
        assert {p.name.split("_")[0] for p in (out / "imagesTs").iterdir()} == test
        assert not {p.name.split("_")[0] for p in (out / "imagesTr").iterdir()} & test

    def test_without_labels(self, labeled: Registry, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-09"):
            run(labeled, tmp_path / "out", "nnunet", "role = 'image'")
        assert not (tmp_path / "out").exists()

    def test_two_label_maps_of_one_image(self, tmp_path: Path, run_ingest, save) -> None:
        from core_mri.files.nifti import write_nifti

        label = save(tmp_path / "in" / "patient1" / "a_mask.nii.gz", "knee", 1, label=True)
        save(tmp_path / "in" / "patient1" / "a.nii.gz", "knee", 1)
        write_nifti(
            label.with_array((label.array > 0).astype(np.uint8)),
            tmp_path / "in" / "patient1" / "b_mask.nii.gz",
        )
        run_ingest(tmp_path / "reg", tmp_path / "in")
        with pytest.raises(ConfigError, match="has 2 label maps"):
            run(Registry.open(tmp_path / "reg"), tmp_path / "out", "nnunet")


class TestMonai:
    def test_its_reader_finds_every_file(self, labeled: Registry, tmp_path: Path) -> None:
        from monai.data import load_decathlon_datalist

        run(labeled, tmp_path, "monai")
        found: dict[str, set[str]] = {}
        for part, split in (("training", "train"), ("validation", "val"), ("test", "test")):
            entries = load_decathlon_datalist(tmp_path / "datalist.json", True, part)
            found[split] = {Path(e["image"]).name.split("_")[0] for e in entries}
            for entry in entries:
                image, label = read_nifti(Path(entry["image"])), read_nifti(Path(entry["label"]))
                assert image.same_grid(label)
        for split, subjects in found.items():
            rows = labeled.volumes("split = ?", [split])
            assert subjects == {row.subject_id for row in rows}


class TestWebDataset:
    def test_every_slice_once_with_its_voxels(self, labeled: Registry, tmp_path: Path) -> None:
        report = run(labeled, tmp_path, "webdataset")
        assert (report.written, report.other_roles) == (3, 12)
        seen = set()
        for path in tmp_path.glob("*.tar"):
            split = path.name.split("-")[0]
            with tarfile.open(path) as tar:
                members = tar.getmembers()
                for voxels, facts in zip(members[::2], members[1::2], strict=True):
                    assert voxels.name.removesuffix("npy") == facts.name.removesuffix("json")
                    told = json.loads(tar.extractfile(facts).read())
                    row = labeled.volume(told["volume_id"])
                    array = np.load(io.BytesIO(tar.extractfile(voxels).read()))
                    expected = labeled.read_slice(row, told["index"])
                    assert array.dtype == expected.dtype
                    np.testing.assert_array_equal(array, expected)
                    assert row.split == split
                    seen.add((row.volume_id, told["index"]))
        rows = labeled.volumes("role = 'image'")
        assert seen == {(row.volume_id, i) for row in rows for i in range(row.num_slices)}

    def test_tars_stay_below_their_size(self, labeled: Registry, tmp_path: Path) -> None:
        tars = Tars(labeled, "", max_bytes=40_000)
        files = list(tars.files())
        assert len(files) > 3
        for path, write in files:
            write(tmp_path / path)
            assert (tmp_path / path).stat().st_size <= 40_000 + 3072 + 32 * 32 * 2 + 10_240

    def test_full_disk_leaves_nothing(
        self, labeled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tarfile.TarFile.addfile", full)
        with pytest.raises(DataError, match="DATA-07"):
            run(labeled, tmp_path, "webdataset")
        assert not list(tmp_path.glob("*.tar"))
        assert not list(tmp_path.glob(".*.tar"))

    def test_its_reader(self, labeled: Registry, tmp_path: Path) -> None:
        webdataset = pytest.importorskip("webdataset")
        run(labeled, tmp_path, "webdataset")
        data = webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)
        slices = SliceDataset(labeled, min_foreground=0)
        assert sum(1 for _ in data.decode()) == len(slices)
