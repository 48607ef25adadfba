from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from core_mri.errors import DataError
from core_mri.volume import Volume
from data_registry import Registry, SliceDataset
from data_registry.slices import windowed

ALL = ("train", "val", "test")


class TestContent:
    def test_only_images_of_the_split(self, registry: Registry) -> None:
        role = {row.volume_id: row for row in registry.volumes()}
        for split in ALL:
            expected = registry.volumes("role = 'image' AND split = ?", [split])
            if not expected:
                continue
            dataset = SliceDataset(registry, split=(split,), min_foreground=0.0)
            assert len(dataset) == sum(row.num_slices for row in expected)
            used = {dataset[i].volume_id for i in range(len(dataset))}
            assert used == {row.volume_id for row in expected}
            assert {role[v].role for v in used} == {"image"}

    def test_labels_never_appear(self, registry: Registry) -> None:
        with pytest.raises(DataError) as caught:
            SliceDataset(registry, split=ALL, where="role = 'label'")
        assert caught.value.code == "DATA-09"

    def test_condition_with_or_stays_inside(self, registry: Registry) -> None:
        """An unbracketed OR would let labels in."""
        dataset = SliceDataset(registry, split=ALL, where="region = 'knee' OR role = 'label'")
        assert {row.role for row in dataset.volumes} == {"image"}

    def test_nothing_left(self, registry: Registry) -> None:
        with pytest.raises(DataError, match="foreground") as caught:
            SliceDataset(registry, split=ALL, min_foreground=1.1)
        assert caught.value.code == "DATA-09"


class TestSamples:
    def test_window_of_the_whole_volume(self, registry: Registry) -> None:
        dataset = SliceDataset(registry, split=ALL)
        sample = dataset[5]
        row = registry.volume(sample.volume_id)
        array = registry.read(row).array
        low, high = np.percentile(array, [0.5, 99.5])
        expected = np.clip((array[sample.index] - low) / (high - low), 0, 1)
        assert sample.image.dtype == np.float32
        assert sample.image.shape == (row.rows, row.columns)
        np.testing.assert_allclose(sample.image, expected, atol=1e-6)
        assert (sample.subject_id, sample.region) == (row.subject_id, row.region)
        assert (sample.sequence, sample.plane) == (row.sequence, row.plane)

    def test_order_is_fixed(self, registry: Registry) -> None:
        first, second = (SliceDataset(registry, split=ALL) for _ in range(2))
        order = [(first[i].volume_id, first[i].index) for i in range(len(first))]
        assert order == [(second[i].volume_id, second[i].index) for i in range(len(second))]
        assert order == sorted(order)

    def test_pickled_dataset_reads_the_same(self, registry: Registry) -> None:
        dataset = SliceDataset(registry, split=ALL)
        dataset[0]
        again = pickle.loads(pickle.dumps(dataset))
        assert len(again) == len(dataset)
        np.testing.assert_array_equal(again[7].image, dataset[7].image)

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
    def test_windowed(self, dtype: str) -> None:
        array = np.array([[0, 10], [20, 200]], dtype=dtype)
        np.testing.assert_allclose(windowed(array, 10, 20), [[0, 0], [1, 1]])
        np.testing.assert_allclose(windowed(array, 0, 40), [[0, 0.25], [0.5, 1]])


class TestForeground:
    def test_slices_of_air_are_dropped(self, tmp_path: Path, run_ingest) -> None:
        """Four slices with 0, 1, 50 and 100 % signal; noise stays under a tenth of the window."""
        from core_mri.files.nifti import write_nifti

        array = np.random.default_rng(0).integers(0, 5, (10, 10, 4)).astype(np.uint16)
        array[0, 0, 1] += 1000
        array[:5, :, 2] += 1000
        array[:, :, 3] += 1000
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        (tmp_path / "a").mkdir()
        write_nifti(Volume(array, affine), tmp_path / "a" / "patient01.nii.gz")
        run_ingest(tmp_path / "reg", tmp_path / "a")
        registry = Registry.open(tmp_path / "reg")
        rows = sorted(registry.rows('SELECT "index", foreground FROM slices'))
        assert [fraction for _, fraction in rows] == pytest.approx([0, 0.01, 0.5, 1])
        assert registry.volumes()[0].num_foreground_slices == 2
        counts = [len(SliceDataset(registry, split=ALL, min_foreground=m)) for m in (0, 0.02, 0.9)]
        assert counts == [4, 2, 1]
