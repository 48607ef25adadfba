from __future__ import annotations

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError
from pretrain.sampler import (
    SliceOrder,
    adjacent_positions,
    check_batch,
    micro_batches,
    random_stream,
    rank_slice,
)


def order(num_slices, *, steps, batch_size, seed=0, **options):
    found = SliceOrder(num_slices, seed, **options)
    return np.concatenate([found(step, batch_size) for step in range(steps)])


class TestPureFunction:
    def test_any_step_can_be_asked_alone(self):
        whole = order(50, steps=10, batch_size=8)
        assert np.array_equal(SliceOrder(50, 0)(7, 8), whole[56:64])

    def test_batch_size_does_not_change_the_order(self):
        first = np.arange(0, 50, 5)
        small = order(50, steps=12, batch_size=4, first_slices=first, group=4)
        large = order(50, steps=3, batch_size=16, first_slices=first, group=4)
        assert np.array_equal(small, large)

    def test_seed_changes_the_order(self):
        assert not np.array_equal(SliceOrder(50, 0)(0, 50), SliceOrder(50, 1)(0, 50))

    def test_streams_share_no_draws(self):
        a, b = (random_stream(0, 0, stream).integers(2**62, size=100) for stream in (0, 1))
        assert not set(a) & set(b)


class TestRounds:
    def test_a_round_of_single_slices_is_a_permutation(self):
        found = order(48, steps=6, batch_size=16)
        for number in range(2):
            assert sorted(found[number * 48 : (number + 1) * 48]) == list(range(48))
        assert not np.array_equal(found[:48], found[48:])

    @pytest.mark.parametrize("num_volumes", [8, 9, 15])
    def test_a_group_holds_no_volume_twice(self, num_volumes):
        sizes = np.arange(1, num_volumes + 1)
        first = np.cumsum(sizes) - sizes
        volume_of = np.repeat(np.arange(num_volumes), sizes)
        found = order(sizes.sum(), steps=20, batch_size=16, first_slices=first, group=8)
        for group in volume_of[found].reshape(-1, 8):
            assert len(set(group)) == 8

    def test_fewer_volumes_than_a_group_take_turns(self):
        found = order(30, steps=4, batch_size=8, first_slices=np.array([0, 10, 20]), group=8)
        assert sorted(np.bincount(found // 10, minlength=3)) == [10, 11, 11]

    def test_every_slice_is_seen_within_two_visits_a_slice(self):
        found = order(40, steps=20, batch_size=4, first_slices=np.array([0, 20]))
        assert set(found) == set(range(40))

    def test_volumes_count_alike_whatever_their_size(self):
        first = np.array([0, 2, 100])
        found = order(200, steps=60, batch_size=5, first_slices=first)
        assert np.bincount(np.searchsorted(first, found, "right") - 1).tolist() == [100] * 3


def many_kinds(seed):
    """Volumes of 1 to 9 slices in strata of 1, 2, 4, ... volumes, in random order."""
    rng = np.random.default_rng(seed)
    strata = rng.permutation(np.repeat(np.arange(7), 2 ** np.arange(7)))
    sizes = rng.integers(1, 10, len(strata))
    return strata, sizes, np.cumsum(sizes) - sizes


class TestBalance:
    @pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_strata_get_their_share_and_groups_no_volume_twice(self, balance, seed):
        strata, sizes, first = many_kinds(seed)
        options = {"first_slices": first, "group": 4, "strata": strata, "balance": balance}
        found = order(sizes.sum(), steps=125, batch_size=64, seed=seed, **options)
        volume = np.searchsorted(first, found, "right") - 1
        for group in volume.reshape(-1, 4):
            assert len(set(group)) == 4
        expected = (2 ** np.arange(7)) ** (1 - balance)
        got = np.bincount(strata[volume], minlength=7) / len(found)
        np.testing.assert_allclose(got, expected / expected.sum(), atol=0.012)

    @pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
    def test_within_a_stratum_volumes_count_alike(self, balance):
        strata, sizes, first = many_kinds(0)
        whole_rounds = {"steps": 200, "batch_size": 127 // 8 * 8}
        found = order(sizes.sum(), **whole_rounds, first_slices=first, group=8, strata=strata,
                      balance=balance)  # fmt: skip
        visits = np.bincount(np.searchsorted(first, found, "right") - 1, minlength=len(strata))
        for stratum in range(7):
            own = visits[strata == stratum]
            assert own.min() > 0
            assert own.max() - own.min() <= 1

    def test_every_slice_of_a_rare_stratum_is_seen(self):
        strata = np.array([0] + [1] * 40)
        first = np.concatenate([[0], 50 + np.arange(40)])
        found = order(90, steps=60, batch_size=16, first_slices=first, group=4, strata=strata,
                      balance=1.0)  # fmt: skip
        assert set(range(50)) <= set(found)
        assert np.mean(found < 50) == pytest.approx(0.25)  # one of a group of 4, and no more

    def test_more_strata_than_places_in_a_round(self):
        found = order(10, steps=40, batch_size=8, first_slices=np.arange(10), group=8,
                      strata=np.arange(10), balance=1.0)  # fmt: skip
        assert set(found) == set(range(10))
        assert all(len(set(group)) == 8 for group in found.reshape(-1, 8))

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_restart_and_workers_change_nothing(self, world_size):
        strata, sizes, first = many_kinds(1)
        options = {"first_slices": first, "group": 4, "strata": strata, "balance": 0.5}
        whole = order(sizes.sum(), steps=30, batch_size=16, **options)
        late = SliceOrder(sizes.sum(), 0, **options)
        shares = [rank_slice(late(17, 16), rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), whole[17 * 16 : 18 * 16])

    def test_one_hundred_thousand_volumes_take_little_time(self):
        import time

        strata = np.random.default_rng(0).zipf(1.5, 100_000).clip(max=200) - 1
        start = time.process_time()
        slices = SliceOrder(5_000_000, 0, first_slices=np.arange(0, 5_000_000, 50), group=8,
                            strata=strata, balance=0.5)  # fmt: skip
        slices(0, 1024)
        assert time.process_time() - start < 5


class TestShares:
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_shares_of_all_ranks_are_the_batch(self, world_size):
        batch = SliceOrder(50, 0)(3, 16)
        shares = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), batch)

    @pytest.mark.parametrize("world_size", [1, 2, 3, 5, 6])
    def test_groups_stay_whole_where_they_do_not_divide(self, world_size):
        batch = np.arange(24)
        shares = [rank_slice(batch, rank, world_size, 4) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), batch)
        assert all(len(share) % 4 == 0 and len(share) for share in shares)
        assert max(map(len, shares)) - min(map(len, shares)) <= 4

    @pytest.mark.parametrize(
        ("world_size", "most", "parts"), [(1, 0, 1), (1, 8, 3), (1, 16, 2), (2, 8, 2), (5, 4, 1)]
    )
    def test_parts_are_as_few_as_fit(self, world_size, most, parts):
        assert micro_batches(24, world_size, 4, most) == parts


class TestAdjacent:
    VOLUMES = np.repeat(np.arange(5), [1, 2, 5, 40, 3])

    def near(self, positions, samples, reach=2, seed=0):
        return adjacent_positions(
            np.asarray(positions), np.asarray(samples), self.VOLUMES, reach, seed=seed
        )

    def test_another_slice_of_the_same_volume_within_reach(self):
        positions = np.repeat(np.arange(len(self.VOLUMES)), 50)
        found = self.near(positions, np.arange(len(positions)))
        assert np.array_equal(self.VOLUMES[found], self.VOLUMES[positions])
        distance = np.abs(found - positions)
        assert distance.max() == 2
        assert ((distance == 0) == (positions == 0)).all()  # the volume of one slice

    def test_all_neighbors_alike(self):
        found = self.near(np.full(4000, 20), np.arange(4000)) - 20
        values, counts = np.unique(found, return_counts=True)
        assert values.tolist() == [-2, -1, 1, 2]
        assert counts.min() > 900

    def test_depends_on_seed_and_sample_alone(self):
        positions, samples = np.arange(20), np.arange(100, 120)
        whole = self.near(positions, samples)
        assert np.array_equal(self.near(positions[7:9], samples[7:9]), whole[7:9])
        assert not np.array_equal(self.near(positions, samples, seed=1), whole)


class TestRefusals:
    def test_fitting_batch_passes(self):
        check_batch(64, 32, 2, 8)

    @pytest.mark.parametrize(
        ("num_slices", "batch_size", "world_size", "group", "advice"),
        [
            (20, 32, 1, 8, "Try batch_size 16"),
            (64, 30, 2, 4, "Try batch_size 28"),
            (64, 32, 9, 4, "from 36 on"),
            (6, 32, 1, 8, "multiple of 8"),
        ],
    )
    def test_batches_that_do_not_fit_name_the_next_to_try(
        self, num_slices, batch_size, world_size, group, advice
    ):
        with pytest.raises(ConfigError, match=advice) as caught:
            check_batch(num_slices, batch_size, world_size, group)
        assert caught.value.code == "CONFIG-05"

    def test_no_slices(self):
        with pytest.raises(DataError) as caught:
            check_batch(0, 32, 1, 8)
        assert caught.value.code == "DATA-09"
