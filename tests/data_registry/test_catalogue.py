from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import CoreMRIError, DataError
from core_mri.volume import SLICE_ORIENTATION
from data_registry import Registry
from data_registry.commits import sole_writer


def code_of(action) -> str:
    with pytest.raises(CoreMRIError) as caught:
        action()
    return caught.value.code


@pytest.fixture
def copy(registry: Registry, tmp_path: Path) -> Path:
    return Path(shutil.copytree(registry.path, tmp_path / "copy"))


class TestOpen:
    def test_created_registry_opens(self, tmp_path: Path) -> None:
        Registry.create(tmp_path / "new" / "reg", fractions=(0.5, 0.25, 0.25))
        registry = Registry.open(tmp_path / "new" / "reg")
        assert registry.info.fractions == (0.5, 0.25, 0.25)
        assert registry.volumes() == []
        assert registry.stats()["volumes"] == registry.stats()["slices"] == 0

    def test_create_opens_what_is_there(self, copy: Path) -> None:
        assert len(Registry.create(copy).volumes()) == 14

    def test_missing_folder(self, tmp_path: Path) -> None:
        assert code_of(lambda: Registry.open(tmp_path / "none")) == "DATA-08"

    def test_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("chapter 1")
        assert code_of(lambda: Registry.create(tmp_path)) == "CONFIG-03"
        assert code_of(lambda: Registry.open(tmp_path)) == "DATA-08"
        assert (tmp_path / "thesis.txt").read_text() == "chapter 1"

    def test_newer_schema(self, copy: Path) -> None:
        content = json.loads((copy / "registry.json").read_text())
        (copy / "registry.json").write_text(json.dumps({**content, "schema": 99}))
        with pytest.raises(DataError, match="schema 99") as caught:
            Registry.open(copy)
        assert caught.value.code == "DATA-08"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "core-mri registry"}'])
    def test_damaged_registry_file(self, copy: Path, text: str) -> None:
        (copy / "registry.json").write_text(text)
        assert code_of(lambda: Registry.open(copy)) == "DATA-08"


class TestVolumes:
    def test_order_is_that_of_ids(self, registry: Registry) -> None:
        ids = [row.volume_id for row in registry.volumes()]
        assert ids == sorted(ids)
        assert len(set(ids)) == 14

    def test_condition_with_parameters(self, registry: Registry) -> None:
        rows = registry.volumes("region = ? AND role = ?", ["knee", "image"])
        assert len(rows) == 3
        assert {row.region for row in rows} == {"knee"}

    def test_wrong_condition(self, registry: Registry) -> None:
        assert code_of(lambda: registry.volumes("colour = 'blue'")) == "CONFIG-01"

    def test_an_open_registry_sees_new_commits(self, tmp_path: Path, run_ingest, save) -> None:
        registry = Registry.create(tmp_path / "reg")
        assert registry.volumes() == []
        save(tmp_path / "a" / "patient01.nii.gz", "knee", 1)
        run_ingest(registry.path, tmp_path / "a")
        assert len(registry.volumes()) == 1

    def test_damaged_part(self, copy: Path) -> None:
        next(copy.glob("commits/*/volumes.parquet")).write_bytes(b"PAR1 broken")
        assert code_of(lambda: Registry.open(copy).volumes()) == "DATA-08"


class TestRead:
    def test_voxels_and_geometry_of_the_file(self, registry: Registry, scans: Path) -> None:
        """Undoing the reorientation gives the file's own voxels and affine."""
        from core_mri.files.nifti import read_nifti

        original = read_nifti(scans / "patient01" / "knee_T1.nii.gz")
        expected = original.reorient(SLICE_ORIENTATION[original.plane])
        matches = [
            volume
            for row in registry.volumes("role = 'image' AND region = 'knee'")
            if (volume := registry.read(row)).shape == expected.shape
            and (volume.array == expected.array).all()
        ]
        assert len(matches) == 1
        assert matches[0].array.dtype == original.array.dtype == np.uint16
        assert matches[0].same_grid(expected, tolerance_mm=1e-4)
        back = matches[0].reorient(original.orientation)
        np.testing.assert_array_equal(back.array, original.array)

    def test_slice_is_a_slice_of_the_volume(self, registry: Registry) -> None:
        row = registry.volumes()[3]
        volume = registry.read(row.volume_id)
        assert volume.shape == (row.num_slices, row.rows, row.columns)
        np.testing.assert_array_equal(registry.read_slice(row, 2), volume.array[2])
        np.testing.assert_array_equal(registry.read_slice(row.volume_id, 0), volume.array[0])

    def test_role_becomes_kind(self, registry: Registry) -> None:
        for role in ("image", "label"):
            assert registry.read(registry.volumes("role = ?", [role])[0]).kind == role

    def test_missing_shard_is_named(self, copy: Path) -> None:
        row = Registry.open(copy).volumes()[0]
        (copy / "shards" / row.shard).unlink()
        with pytest.raises(DataError, match=row.shard) as caught:
            Registry.open(copy).read(row)
        assert caught.value.code == "DATA-08"

    def test_unknown_volume(self, registry: Registry) -> None:
        assert code_of(lambda: registry.read("V0")) == "DATA-08"

    def test_pickled_registry_reads(self, registry: Registry) -> None:
        row = registry.volumes()[0]
        again = pickle.loads(pickle.dumps(registry))
        np.testing.assert_array_equal(again.read(row).array, registry.read(row).array)


class TestLabelsOf:
    def test_every_image_finds_the_labels_of_its_patient(self, registry: Registry) -> None:
        images = registry.volumes("role = 'image' AND region <> 'prostate'")
        assert len(images) == 7
        for image in images:
            (label,) = registry.labels_of(image)
            assert label.subject_id == image.subject_id
            assert registry.read(label).same_grid(registry.read(image))

    def test_none_for_a_patient_without(self, registry: Registry) -> None:
        (image,) = registry.volumes("region = 'prostate'")
        assert registry.labels_of(image) == []

    def test_not_on_another_grid(self, registry: Registry) -> None:
        import dataclasses

        image = registry.volumes("role = 'image' AND region = 'knee'")[0]
        affine = (*image.affine[:3], image.affine[3] + 0.5, *image.affine[4:])
        assert registry.labels_of(dataclasses.replace(image, affine=affine)) == []


class TestStats:
    def test_counts(self, registry: Registry) -> None:
        stats = registry.stats()
        assert stats["volumes"] == 8
        assert stats["slices"] == 32
        assert stats["subjects"] == 7
        assert stats["labels"] == 6
        assert stats["by_region"] == {"brain": 4, "knee": 3, "prostate": 1}
        assert stats["by_sequence"] == {"T1": 6, "T2": 2}
        assert stats["by_source"] == {"phantoms": 8}
        assert stats["quarantined"] == {}
        assert sum(stats["by_split"].values()) == 8

    def test_can_be_json(self, registry: Registry) -> None:
        assert json.loads(json.dumps(registry.stats())) == registry.stats()


class TestSoleWriter:
    def test_second_writer_is_told_who_writes(self, tmp_path: Path) -> None:
        import os

        registry = Registry.create(tmp_path / "reg")
        with (
            sole_writer(registry),
            pytest.raises(DataError, match=f"process {os.getpid()}") as caught,
            sole_writer(registry),
        ):
            pass
        assert caught.value.code == "DATA-08"

    def test_lock_of_a_dead_process_is_taken_over(self, tmp_path: Path) -> None:
        registry = Registry.create(tmp_path / "reg")
        (registry.path / ".lock").write_text("4194304999\n")
        with sole_writer(registry):
            pass

    def test_reading_needs_no_lock(self, copy: Path) -> None:
        registry = Registry.open(copy)
        with sole_writer(registry):
            assert len(Registry.open(copy).volumes()) == 14
