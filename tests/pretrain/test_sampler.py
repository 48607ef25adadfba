from __future__ import annotations

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError
from pretrain.sampler import check_batch, global_indices, random_stream, rank_slice


def order(num_slices, *, steps, batch_size, seed=0, **options):
    return np.concatenate(
        [global_indices(num_slices, seed, step, batch_size, **options) for step in range(steps)]
    )


class TestPureFunction:
    def test_any_step_can_be_asked_alone(self):
        whole = order(50, steps=10, batch_size=8)
        assert np.array_equal(global_indices(50, 0, 7, 8), whole[56:64])

    def test_batch_size_does_not_change_the_order(self):
        first = np.arange(0, 50, 5)
        small = order(50, steps=12, batch_size=4, first_slices=first, group=4)
        large = order(50, steps=3, batch_size=16, first_slices=first, group=4)
        assert np.array_equal(small, large)

    def test_seed_changes_the_order(self):
        assert not np.array_equal(global_indices(50, 0, 0, 50), global_indices(50, 1, 0, 50))

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


class TestShares:
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_shares_of_all_ranks_are_the_batch(self, world_size):
        batch = global_indices(50, 0, 3, 16)
        shares = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), batch)


class TestRefusals:
    def test_fitting_batch_passes(self):
        check_batch(64, 32, 2, 8)

    @pytest.mark.parametrize(
        ("num_slices", "batch_size", "world_size", "group", "advice"),
        [
            (20, 32, 1, 8, "Try batch_size 16"),
            (64, 30, 2, 4, "Try batch_size 24"),
            (64, 32, 3, 4, "Try batch_size 24"),
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
