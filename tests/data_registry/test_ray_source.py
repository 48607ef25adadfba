"""Slices through Ray Data are those of the data set, each once."""

from __future__ import annotations

import numpy as np
import pytest

from data_registry import Registry, SliceDataset

ALL = ("train", "val", "test")


@pytest.mark.ray
@pytest.mark.slow
class TestRaySlices:
    def test_every_slice_once_with_its_pixels(self, registry: Registry) -> None:
        import ray

        from data_registry.ray_source import ray_slices

        slices = SliceDataset(registry, split=ALL, min_foreground=0)
        expected = {(s.volume_id, s.index): s for s in (slices[i] for i in range(len(slices)))}
        ray.init(num_cpus=2, include_dashboard=False)
        try:
            rows = ray_slices(slices, slices_per_task=5).take_all()
        finally:
            ray.shutdown()
        assert len(rows) == len(expected) == 32
        assert {(row["volume_id"], row["index"]) for row in rows} == set(expected)
        for row in rows:
            sample = expected[row["volume_id"], row["index"]]
            np.testing.assert_array_equal(row["image"], sample.image)
            assert (row["region"], row["subject_id"]) == (sample.region, sample.subject_id)


class TestTasks:
    def test_a_task_reads_one_shard_in_order(self, registry: Registry) -> None:
        from data_registry.ray_source import _tasks

        slices = SliceDataset(registry, split=ALL, min_foreground=0)
        tasks = list(_tasks(slices, 5))
        assert sorted(np.concatenate(tasks).tolist()) == list(range(len(slices)))
        for positions in tasks:
            assert 0 < len(positions) <= 5
            places = [slices.place(int(i)) for i in positions]
            assert len({place.shard for place in places}) == 1
            starts = [place.byte_start for place in places]
            assert starts == sorted(starts)
