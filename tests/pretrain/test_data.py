"""What training reads: pairs of slices, and errors that name the volume."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.errors import DataError
from core_mri.files.nifti import write_nifti
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Source, ingest
from pretrain.data import batches, open_slices, windowed
from pretrain.sampler import sample_numbers
from pretrain.train import Trainer, train
from pretrain.upload import upload


def read(config, step=0, **options):
    return next(batches(open_slices(config), config, start=step, rank=0, world_size=1, **options))


class TestBatches:
    def test_stored_slices_are_the_images_of_the_registry(self, tiny, registry):
        dataset = open_slices(tiny(registry=str(registry)))
        for position in range(0, len(dataset), 7):
            stored, sample = dataset.stored(position), dataset[position]
            assert stored.payload.dtype.itemsize <= 2
            assert (stored.volume_id, stored.index) == (sample.volume_id, sample.index)
            image = upload([stored], torch.device("cpu"))[0].numpy()
            np.testing.assert_allclose(image, sample.image, atol=1e-5)

    def test_no_adjacent_slices_by_default(self, tiny, registry):
        assert all(sample.adjacent is None for sample in read(tiny(registry=str(registry))))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_adjacent_slices_are_of_the_same_volume_and_near(self, tiny, registry, workers):
        plain = tiny(registry=str(registry))
        config = tiny(registry=str(registry), views={"adjacent_slices": 2}, loader_workers=workers)
        for own, adjacent in read(config, step=3):
            assert own.volume_id == adjacent.volume_id
            assert 1 <= abs(own.index - adjacent.index) <= 2
        own = [(s.own.volume_id, s.own.index) for s in read(config, step=3)]
        assert own == [(s.own.volume_id, s.own.index) for s in read(plain, step=3)]
        # One slice of a volume in each KoLeo group, and the same volumes in the second view.
        for start in range(0, len(own), config.objective.koleo_group):
            group = own[start : start + config.objective.koleo_group]
            assert len({volume for volume, _ in group}) == len(group)

    def test_a_slice_in_its_own_window(self, tiny, registry):
        plain = read(tiny(registry=str(registry)))
        own = read(tiny(registry=str(registry), views={"window": "slice"}))
        for before, after in zip(plain, own, strict=True):
            np.testing.assert_array_equal(before.own.payload, after.own.payload)
            image = upload([after.own], torch.device("cpu"))[0].numpy()
            height, width = after.own.payload.shape
            assert 0.004 < (image[:height, :width] >= 1).mean() < 0.05
        assert any(b.own.gain != a.own.gain for b, a in zip(plain, own, strict=True))

    def test_a_uniform_slice_keeps_the_window_of_its_volume(self, tiny, registry):
        stored = read(tiny(registry=str(registry)))[0].own
        flat = replace(stored, payload=np.full_like(stored.payload, 7))
        assert windowed(flat) is flat

    def test_shares_of_workers_are_the_batch(self, tiny, registry):
        config = tiny(registry=str(registry), views={"adjacent_slices": 2})
        dataset = open_slices(config)
        whole = read(config)
        parts = [
            next(batches(dataset, config, start=0, rank=rank, world_size=2)) for rank in (0, 1)
        ]
        pairs = [[(s.own.index, s.adjacent.index) for s in part] for part in (whole, *parts)]
        assert pairs[0] == pairs[1] + pairs[2]
        assert len(sample_numbers(0, config.batch_size)) == len(whole)


@pytest.fixture
def float_registry(tmp_path):
    """A registry whose payloads are float32 and not compressed, so that they can be spoilt."""
    rng = np.random.default_rng(0)
    for subject in range(10):
        image, _ = phantom_volume("brain", subject, size=48, num_slices=6)
        noisy = image.with_array(
            (np.asarray(image.array) + rng.random(image.array.shape) * 1e-3).astype(np.float32)
        )
        scan = tmp_path / "scans" / f"sub-{subject:02d}" / "brain_T1.nii.gz"
        scan.parent.mkdir(parents=True)
        write_nifti(noisy, scan)
    source = Source(name="noisy", licence="CC0-1.0", root=str(tmp_path / "scans"), synthetic=True)
    options = {"registry": tmp_path / "registry", "sources": (source,), "jobs": 1}
    ingest(IngestConfig(**options, compression="none"))
    return tmp_path / "registry"


def spoil(dataset, position, value):
    """Overwrite one voxel of a slice where it lies."""
    place = dataset.place(position)
    assert place.codec == "none"
    with (dataset.registry.path / "shards" / place.shard).open("r+b") as file:
        file.seek(place.byte_start)
        file.write(np.array(value, place.dtype).tobytes())


class TestDamage:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_voxel_that_is_not_finite_names_the_volume(self, tiny, float_registry, workers):
        config = tiny(registry=str(float_registry), loader_workers=workers, steps=40)
        dataset = open_slices(config)
        spoil(dataset, 11, np.nan)
        volume = dataset.volume_of(11).volume_id
        with pytest.raises(DataError, match=f"volume {volume}, slice .*not finite") as caught:
            for _ in batches(dataset, config, start=0, rank=0, world_size=1):
                pass
        assert caught.value.code == "DATA-04"
        assert volume in caught.value.fix

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_shard_lost_in_mid_run_names_shard_and_volume_and_keeps_the_checkpoint(
        self, tiny, registry, tmp_path, workers, monkeypatch
    ):
        own = shutil.copytree(registry, tmp_path / "copy")
        config = tiny(registry=str(own), loader_workers=workers, steps=6)
        original = Trainer.step

        def losing(self, step):
            if step == 3:
                for shard in (own / "shards").iterdir():
                    shard.unlink()
                self.dataset.reader.__setstate__({"_folder": own / "shards"})
                self._batches = None
            return original(self, step)

        monkeypatch.setattr(Trainer, "step", losing)
        with pytest.raises(
            DataError, match=r"volume \w+, slice \d+: shard .* is missing"
        ) as caught:
            train(config)
        assert caught.value.code == "DATA-08"
        kept = [path.name[:13] for path in (config.out / "checkpoints").glob("step_*")]
        assert kept == ["step_00000002"]

    def test_damaged_bytes_of_a_compressed_shard_name_the_volume(self, tiny, registry, tmp_path):
        own = shutil.copytree(registry, tmp_path / "copy")
        dataset = open_slices(tiny(registry=str(own)))
        place = dataset.place(5)
        assert place.codec != "none"
        with (own / "shards" / place.shard).open("r+b") as file:
            file.seek(place.byte_start + 40)
            file.write(bytes(8))
        volume = dataset.volume_of(5).volume_id
        with pytest.raises(DataError, match=f"volume {volume}, slice .*is damaged") as caught:
            dataset.stored(5)
        assert caught.value.code == "DATA-08"
