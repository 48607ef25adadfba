"""Slices of a registry as a Ray Data set, read by the same reader: for work on many machines.

Training reads through `SliceDataset` itself, in an order that is a pure function of the seed; this
is for passes over all slices, such as embeddings, where the order does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import ray.data

    from data_registry.slices import SliceDataset


def ray_slices(slices: SliceDataset, *, slices_per_task: int = 2048) -> ray.data.Dataset:
    """All slices as rows with the fields of `SliceSample`: ``image`` is float32 ``[H, W]``.

    A task reads slices of one shard in the order in which they lie there. Every machine must see
    the registry under the same path.

    Args:
        slices: What to read.
        slices_per_task: At most.
    """
    import ray
    import ray.data

    shared = ray.put(slices)

    def read(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        own: SliceDataset = ray.get(shared)
        for position in task["positions"].tolist():
            sample = own[position]
            yield {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}

    tasks = [{"positions": positions} for positions in _tasks(slices, slices_per_task)]
    return ray.data.from_items(tasks, override_num_blocks=len(tasks)).flat_map(read)


def _tasks(slices: SliceDataset, most: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of one shard each, in the order of their bytes."""
    order, begins = slices.shard_order()
    for own in np.split(order, begins[1:]):
        yield from np.array_split(own, -(-len(own) // most))
