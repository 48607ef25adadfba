"""Which slices a step sees: a pure function of the seed and the global sample index.

Sample s (step * batch_size + position) is the same slice whatever the number of workers, and
whenever the run was restarted. The order is made of rounds. In a round every volume stands once, in
a new random permutation, and gives one slice; a remainder that does not fill a KoLeo group sits the
round out. So no group holds two slices of one volume, and a volume of 200 thin slices counts as
much as one of 20. Within its volume the slice follows a golden-ratio sequence, which visits all
parts evenly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]

ORDER, OFFSETS, VIEWS, MASKS, NOISE, DROP_PATH = range(6)
"""Streams of random numbers that share no draws."""
_GOLDEN = (5**0.5 - 1) / 2


def global_indices(
    num_slices: int,
    seed: int,
    step: int,
    batch_size: int,
    *,
    first_slices: Indices | None = None,
    group: int = 1,
) -> Indices:
    """The slices of one step, over all workers.

    Args:
        num_slices: Length of the data set.
        seed: Of the run.
        step: 0-based.
        batch_size: Samples of a step.
        first_slices: [num_volumes], ascending: where each volume begins in the data set. Without it
            every slice is a volume of its own, and a round is a permutation of all slices.
        group: Samples of a KoLeo group. With fewer volumes than that, groups hold repeated volumes.

    Returns:
        [batch_size] indices in [0, num_slices).
    """
    samples = np.arange(step * batch_size, (step + 1) * batch_size)
    first = np.arange(num_slices) if first_slices is None else first_slices
    sizes = np.diff(first, append=num_slices)
    length = max(len(first) // group * group, min(len(first), group))
    rounds, positions = np.divmod(samples, length)
    volumes = np.empty(batch_size, dtype=np.int64)
    for number in np.unique(rounds):
        here = rounds == number
        volumes[here] = _permutation(seed, int(number), len(first))[positions[here]]
    phase = (_offsets(seed, len(first))[volumes] + rounds * _GOLDEN) % 1.0
    return np.asarray(first[volumes] + (phase * sizes[volumes]).astype(np.int64))


def sample_numbers(step: int, batch_size: int) -> Indices:
    """Global sample indices of a step, which seed its views and masks: [batch_size]."""
    return np.arange(step * batch_size, (step + 1) * batch_size)


def rank_slice(indices: Indices, rank: int, world_size: int) -> Indices:
    """The contiguous share of one worker, so that KoLeo groups stay whole."""
    share = len(indices) // world_size
    return indices[rank * share : (rank + 1) * share]


def check_batch(num_slices: int, batch_size: int, world_size: int, group: int) -> None:
    """Refuse batches that the data or the workers cannot fill.

    Raises:
        DataError: DATA-09 when there is no slice at all.
        ConfigError: CONFIG-05 when the batch is larger than the data, or does not give every worker
            the same number of whole KoLeo groups; with the next value to try.
    """
    if num_slices == 0:
        raise DataError(
            "DATA-09",
            "the registry holds no training slice for this configuration.",
            fix="Ingest more data, or loosen `where` and `min_foreground`.",
        )
    unit = world_size * group
    fitting = min(batch_size, num_slices) // unit * unit
    if fitting == 0:
        raise ConfigError(
            "CONFIG-05",
            f"{num_slices} slices and batch_size {batch_size} do not give {world_size} worker(s) "
            f"one group of objective.koleo_group = {group} each.",
            fix=f"Ingest more slices, take a multiple of {unit} as batch_size, or use fewer "
            "workers or a smaller koleo_group.",
        )
    if batch_size > num_slices:
        raise ConfigError(
            "CONFIG-05",
            f"batch_size {batch_size} is larger than the data, {num_slices} slices.",
            fix=f"Try batch_size {fitting}.",
        )
    if batch_size % unit:
        raise ConfigError(
            "CONFIG-05",
            f"batch_size {batch_size} is no multiple of {world_size} worker(s) x "
            f"objective.koleo_group {group}.",
            fix=f"Try batch_size {fitting}.",
        )


def random_stream(seed: int, index: int, stream: int) -> np.random.Generator:
    """Counter-based random numbers for one sample or round (Philox, Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


@lru_cache(maxsize=4)
def _permutation(seed: int, number: int, length: int) -> Indices:
    return random_stream(seed, number, ORDER).permutation(length)


@lru_cache(maxsize=4)
def _offsets(seed: int, length: int) -> npt.NDArray[np.float64]:
    return random_stream(seed, 0, OFFSETS).random(length)
