"""Which slices a step sees: a pure function of the seed and the global sample index.

Sample s (step * batch_size + position) is the same slice whatever the number of workers, and
whenever the run was restarted. The order is made of rounds of about as many samples as there are
volumes. A round gives each stratum (region x sequence x plane) its share, and within a stratum all
volumes the same: a volume of 200 thin slices counts as much as one of 20. A round is dealt to KoLeo
groups like cards, so that no group holds two slices of one volume, and every group has of every
stratum what it can. Within its volume the slice follows a golden-ratio sequence, which visits all
parts evenly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]

ORDER, OFFSETS, VIEWS, MASKS, ADJACENT, DROP_PATH = range(6)
"""Streams of random numbers that share no draws."""
_GOLDEN = (5**0.5 - 1) / 2


class SliceOrder:
    """The order of the slices of a data set, for ever.

    Stratum k, of n_k volumes, gets a part of the samples proportional to n_k^(1 - balance), but no
    volume more than one sample of a group: with 0 volumes count alike, with 1 strata do.

    Args:
        num_slices: Length of the data set.
        seed: Of the run.
        first_slices: [num_volumes], ascending: where each volume begins in the data set. Without it
            every slice is a volume of its own, and a round is a permutation of all slices.
        group: Samples of a KoLeo group. With fewer volumes than that, groups hold repeated volumes.
        strata: [num_volumes], the stratum of each volume as a number from 0; one for all without.
        balance: In [0, 1].
    """

    def __init__(
        self,
        num_slices: int,
        seed: int,
        *,
        first_slices: Indices | None = None,
        group: int = 1,
        strata: npt.NDArray[np.integer] | None = None,
        balance: float = 0.0,
    ) -> None:
        self._seed = seed
        self._first = np.arange(num_slices) if first_slices is None else first_slices
        self._sizes = np.diff(self._first, append=num_slices)
        num_volumes = len(self._first)
        self._offsets = random_stream(seed, 0, OFFSETS).random(num_volumes)
        kinds = np.zeros(num_volumes, dtype=np.int64) if strata is None else strata
        shuffled = random_stream(seed, 1, OFFSETS).permutation(num_volumes)
        _, kind, self._num = np.unique(kinds, return_inverse=True, return_counts=True)
        # Volumes by stratum; within a stratum in the cyclic order in which they take turns.
        self._cycle = shuffled[np.argsort(kind[shuffled], kind="stable")]
        self._start = np.cumsum(self._num) - self._num
        group = min(group, num_volumes)
        self._groups = max(num_volumes // group, -(-len(self._num) // group))
        self._share = _shares(self._num, self._groups * group, self._groups, balance)
        self._round = lru_cache(maxsize=4)(self._make_round)

    def __call__(self, step: int, batch_size: int) -> Indices:
        """The slices of one step, over all workers: [batch_size] indices in [0, num_slices)."""
        return self.at(sample_numbers(step, batch_size))

    def at(self, numbers: Indices) -> Indices:
        """The slices of global sample indices [N]: indices in [0, num_slices)."""
        rounds, positions = np.divmod(numbers, self._share.sum())
        volumes, visits = np.empty((2, len(numbers)), dtype=np.int64)
        for number in np.unique(rounds):
            here = rounds == number
            volumes[here], visits[here] = self._round(int(number))[:, positions[here]]
        phase = (self._offsets[volumes] + visits * _GOLDEN) % 1.0
        return np.asarray(self._first[volumes] + (phase * self._sizes[volumes]).astype(np.int64))

    def _make_round(self, number: int) -> Indices:
        """[2, samples of a round]: the volume of each, and how often it was visited before.

        In each round every volume of a stratum gets ``share // num`` visits; the rest go to the
        next ones of its cycle.
        """
        rng = random_stream(self._seed, number, ORDER)
        often, more = np.divmod(self._share, self._num)
        turn = np.concatenate([np.arange(n) for n in self._num])
        begins = number * more % self._num
        in_turn = (turn - np.repeat(begins, self._num)) % np.repeat(self._num, self._num)
        visits = np.repeat(often, self._num) + (in_turn < np.repeat(more, self._num))
        stratum = np.repeat(np.arange(len(self._num)), self._num)
        order = np.lexsort((rng.random(len(turn)), stratum))
        places = np.repeat(order, visits[order])
        again = np.arange(len(places)) - np.repeat(
            np.cumsum(visits[order]) - visits[order], visits[order]
        )
        most = np.repeat(often + (more > 0), self._num)
        drawn = np.stack([self._cycle[places], number * most[places] + again])
        # Equal volumes stand side by side, at most as many as there are groups.
        size = len(places) // self._groups
        dealt = drawn.reshape(2, size, self._groups).transpose(0, 2, 1)
        within = rng.permuted(np.tile(np.arange(size), (self._groups, 1)), axis=1)
        dealt = np.take_along_axis(dealt, within[None], axis=2)
        return np.asarray(dealt[:, rng.permutation(self._groups)].reshape(2, -1))


def sample_numbers(step: int, batch_size: int) -> Indices:
    """Global sample indices of a step, which seed its views and masks: [batch_size]."""
    return np.arange(step * batch_size, (step + 1) * batch_size)


def rank_slice(indices: Indices, rank: int, world_size: int, group: int = 1) -> Indices:
    """The contiguous share of one worker, of whole KoLeo groups.

    Where the groups do not divide, the first workers have one more than the others.
    """
    return np.array_split(indices.reshape(-1, group), world_size)[rank].ravel()


def micro_batches(batch_size: int, world_size: int, group: int, most: int) -> int:
    """Parts in which every worker computes its share of a batch, one after the other.

    The same number for all, as they meet in each part: ``ceil(largest share / most)``, in groups.

    Args:
        batch_size: Of all workers.
        world_size: Number of workers.
        group: Of KoLeo, which stays whole.
        most: Slices that a worker holds at once, at least one group; 0 is no limit.
    """
    if not most:
        return 1
    groups = batch_size // group
    largest, smallest = -(-groups // world_size), groups // world_size
    return min(-(-largest // (most // group)), smallest)


def adjacent_positions(
    positions: Indices,
    samples: Indices,
    volume_numbers: npt.NDArray[np.integer],
    reach: int,
    *,
    seed: int,
) -> Indices:
    """For each sample another slice of its volume, at most `reach` slices away.

    Args:
        positions: [B], the slice of each sample.
        samples: [B], global sample indices, on which the draw depends.
        volume_numbers: [slices of the data set], the volume of each, ascending.
        reach: At least 1.
        seed: Of the run.

    Returns:
        [B]; the slice itself where its volume has no other.
    """
    owners = volume_numbers[positions]
    first = np.maximum(np.searchsorted(volume_numbers, owners, "left"), positions - reach)
    last = np.minimum(np.searchsorted(volume_numbers, owners, "right") - 1, positions + reach)
    draws = np.array([random_stream(seed, int(s), ADJACENT).random() for s in samples])
    found = first + (draws * (last - first)).astype(np.int64)
    return np.asarray(np.where((found >= positions) & (last > first), found + 1, found))


def check_batch(num_slices: int, batch_size: int, world_size: int, group: int) -> None:
    """Refuse batches that the data or the workers cannot fill.

    Raises:
        DataError: DATA-09 when there is no slice at all.
        ConfigError: CONFIG-05 when the batch is larger than the data, holds no whole number of
            KoLeo groups, or fewer of them than there are workers; with the next value to try.
    """
    if num_slices == 0:
        raise DataError(
            "DATA-09",
            "the registry holds no training slice for this configuration.",
            fix="Ingest more data, or loosen `where` and `min_foreground`.",
        )
    fitting = min(batch_size, num_slices) // group * group
    if fitting < world_size * group:
        raise ConfigError(
            "CONFIG-05",
            f"{num_slices} slices and batch_size {batch_size} do not give {world_size} worker(s) "
            f"one group of objective.koleo_group = {group} each.",
            fix=f"Ingest more slices, take a multiple of {group} from {world_size * group} on as "
            "batch_size, or use fewer workers or a smaller koleo_group.",
        )
    if batch_size > num_slices:
        raise ConfigError(
            "CONFIG-05",
            f"batch_size {batch_size} is larger than the data, {num_slices} slices.",
            fix=f"Try batch_size {fitting}.",
        )
    if batch_size % group:
        raise ConfigError(
            "CONFIG-05",
            f"batch_size {batch_size} is no multiple of objective.koleo_group {group}.",
            fix=f"Try batch_size {fitting}.",
        )


def random_stream(seed: int, index: int, stream: int) -> np.random.Generator:
    """Counter-based random numbers for one sample or round (Philox, Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


def _shares(num: Indices, samples: int, groups: int, balance: float) -> Indices:
    """[strata] samples of each stratum in a round: at least 1, and `groups` of each volume at most.

    Shares proportional to the weights; those beyond a limit get the limit, and the others what is
    left, until none is; then the largest fractions are rounded up.
    """
    weights = num ** (1.0 - balance)
    most = num * groups
    shares = np.zeros(len(num))
    free = np.ones(len(num), dtype=bool)
    while free.any():
        left = samples - shares[~free].sum()
        wanted = left * weights / weights[free].sum()
        over, under = free & (wanted > most), free & (wanted < 1)
        if not (over | under).any():
            shares[free] = wanted[free]
            break
        excess = (wanted - most)[over].sum() - (1 - wanted)[under].sum()
        beyond, limit = (over, most) if excess >= 0 else (under, np.ones_like(most))
        shares[beyond] = limit[beyond]
        free &= ~beyond
    found = np.floor(shares + 1e-9).astype(np.int64)
    rest = np.argsort(found - shares, kind="stable")[: samples - found.sum()]
    found[rest] += 1
    return found
