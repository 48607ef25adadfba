"""Features are kept once for each volume, add up exactly, and go with a patient."""

from __future__ import annotations

import numpy as np
import pytest

from core_mri.errors import DataError
from core_mri.feature_sample import slice_numbers
from core_mri.moments import Moments
from data_registry.catalogue import Registry
from data_registry.similarity.features import foreground_slices
from data_registry.similarity.store import KEPT_ROWS, FeatureStore, VolumeFeatures, volume_features


class Means:
    """Means of rows of pixels: as fast as features can be, and of fixed width."""

    digest, name, most_slices = "means", "means of rows", None

    def __init__(self, width=8):
        self.width = width
        self.made = 0

    def __call__(self, images, spacing_mm):
        del spacing_mm
        self.made += len(images)
        return np.stack([image[: self.width].mean(1) for image in images]).astype(np.float32)


@pytest.fixture
def own(scans, run_ingest, tmp_path) -> Registry:
    run_ingest(tmp_path / "reg", scans)
    return Registry.open(tmp_path / "reg")


class TestMoments:
    def test_merged_ones_are_those_of_all(self):
        rng = np.random.default_rng(0)
        rows = (rng.normal(size=(900, 24)) * 3 + 5).astype(np.float32)
        parts = np.split(rows, [10, 11, 400])
        merged = sum((Moments.of(part) for part in parts[1:]), Moments.of(parts[0]))
        assert merged.n == 900
        assert np.abs(merged.mean - rows.astype(float).mean(0)).max() < 1e-6
        assert np.abs(merged.covariance - np.cov(rows.astype(float).T)).max() < 1e-6
        left = merged - Moments.of(parts[0])
        assert np.abs(left.covariance - np.cov(rows[10:].astype(float).T)).max() < 1e-6


class TestVolume:
    @pytest.mark.parametrize("count", [3, 200])
    def test_moments_are_exact_however_they_are_kept(self, count):
        images = list(np.random.default_rng(0).random((count, 16, 9), dtype=np.float32))
        maker = Means()
        found = volume_features("a", images, maker, (1.0, 1.0))
        direct = Moments.of(maker(images, (1.0, 1.0)))
        assert (found.sums is None) == (count <= maker.width)
        assert len(found.rows) == min(count, KEPT_ROWS)
        assert found.moments().n == count
        assert np.abs(found.moments().outer - direct.outer).max() < 1e-6

    def test_kept_slices_are_those_of_the_smallest_numbers(self):
        images = list(np.random.default_rng(0).random((200, 16, 9), dtype=np.float32))
        found = volume_features("a", images, Means(), (1.0, 1.0))
        numbers = slice_numbers(["a"], np.zeros(200, int), np.arange(200))
        assert set(found.places) == set(np.argsort(numbers)[:KEPT_ROWS])

    def test_names_a_volume_whose_features_are_not_finite(self):
        images = [np.full((16, 9), np.nan, np.float32)]
        with pytest.raises(DataError, match="DATA-37: volume a"):
            volume_features("a", images, Means(), (1.0, 1.0))


class TestStore:
    def test_moments_and_sample_of_any_cohort(self, own):
        rows = own.volumes("role = 'image'")
        store, maker = FeatureStore(own, "means"), Means()
        assert store.compute(rows, maker) == len(rows)
        for chosen in (rows, rows[:3], rows[4:5]):
            images = [image for row in chosen for image in foreground_slices(own, row)]
            direct = maker(images, (1.0, 1.0))
            moments, sample = store.gather(chosen, 1000)
            assert moments.n == sample.population == len(sample) == len(direct)
            assert np.abs(moments.outer - Moments.of(direct).outer).max() < 1e-6
            assert sample.num_patients == len({row.subject_id for row in chosen})

    def test_only_new_volumes_are_embedded(self, own):
        rows = own.volumes("role = 'image'")
        store, maker = FeatureStore(own, "means"), Means()
        store.compute(rows[:4], maker)
        before = maker.made
        assert store.compute(rows, maker) == len(rows) - 4
        assert maker.made - before == sum(len(foreground_slices(own, row)) for row in rows[4:])
        assert store.compute(rows, maker) == 0

    def test_a_smaller_sample_is_the_first_part(self, own):
        rows = own.volumes("role = 'image'")
        store = FeatureStore(own, "means")
        store.compute(rows, Means())
        _, large = store.gather(rows, 20)
        _, small = store.gather(rows, 5)
        assert small.places == large.places[:5]
        assert np.array_equal(small.rows, large.rows[:5])
        assert (np.diff(large.numbers.astype(float)) > 0).all()

    def test_large_volumes_come_back_as_they_went(self, own):
        rows = own.volumes("role = 'image'")
        rng = np.random.default_rng(0)
        features = rng.normal(size=(90, 8)).astype(np.float32)
        kept = np.arange(64, dtype=np.int32)
        store = FeatureStore(own, "means")
        store.add(
            [VolumeFeatures(rows[0].volume_id, 90, kept, features[:64], Moments.of(features))]
        )
        (found,) = store.read([rows[0].volume_id])
        assert np.array_equal(found.moments().outer, Moments.of(features).outer)
        assert np.array_equal(found.rows, features[:64])

    def test_damaged_part(self, own):
        store = FeatureStore(own, "means")
        store.compute(own.volumes("role = 'image'"), Means())
        path = store.parts()[0]
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match="DATA-08") as raised:
            store.volumes()
        assert path.name in str(raised.value)

    def test_nothing_there(self, own):
        with pytest.raises(DataError, match="DATA-09"):
            FeatureStore(own, "none").gather(own.volumes("role = 'image'"), 10)


class TestWithdrawal:
    def test_features_go_with_the_patient(self, own, key_file):
        from data_registry.governance.withdrawal import WithdrawConfig, withdraw

        rows = own.volumes("role = 'image'")
        store = FeatureStore(own, "means")
        store.compute(rows, Means())
        subject = rows[0].subject_id
        gone = {row.volume_id for row in rows if row.subject_id == subject}
        config = WithdrawConfig(subject=subject, reason="asked", key_file=key_file)
        report = withdraw(own, config)
        assert store.volumes() == {row.volume_id for row in rows} - gone
        assert not report.deleted
        content = b"".join(path.read_bytes() for path in store.parts())
        assert not any(name.encode() in content for name in gone)
        assert store.gather(own.volumes("role = 'image'"), 5)[0].n > 0
