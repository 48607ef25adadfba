"""A nested state as tensors, and JSON for the rest; no pickle.

A worker holds a tensor whole (replicated) or a part of it (a `DTensor` of FSDP2). Each part is
written once: replicated tensors are dealt to the workers by size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


class Chunk(NamedTuple):
    """What one worker writes of a tensor."""

    values: Tensor
    """A copy on the processor, contiguous."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    """Where the chunk begins in it."""


def split(state: object) -> tuple[object, dict[str, Tensor]]:
    """What JSON can hold, with names in the place of tensors, and the tensors by name.

    Args:
        state: Mappings (keys strings or numbers), lists and tuples of tensors, numbers, strings,
            booleans and None.

    Raises:
        TypeError: For anything else, naming where it is.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: object, path: str) -> object:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, Mapping):
            entries = [[key, walk(entry, f"{path}/{key}")] for key, entry in value.items()]
            return {"mapping": entries}
        if isinstance(value, list | tuple):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [walk(entry, f"{path}/{n}") for n, entry in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {path or '/'}")

    return walk(state, ""), tensors


def join(tree: object, tensors: Mapping[str, Tensor]) -> Any:
    """The state of which `split` made `tree` and `tensors`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: join(entry, tensors) for key, entry in content}
    entries = [join(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries


def chunks_of(
    tensors: Mapping[str, Tensor], shared: set[str], rank: int, world_size: int
) -> dict[str, Chunk]:
    """Copies of what this worker writes.

    Args:
        tensors: Of this worker.
        shared: Names that all workers have; the others are written by worker 0.
        rank: Of this worker.
        world_size: Number of workers.
    """
    loads = [0] * world_size
    mine: dict[str, Chunk] = {}
    for name, tensor in sorted(tensors.items()):
        shape = tuple(tensor.shape)
        if isinstance(tensor, DTensor):
            part = _local_part(tensor)
            if part is not None:
                mine[name] = part
            continue
        writer = loads.index(min(loads)) if name in shared else 0
        loads[writer] += tensor.nbytes * (name in shared)
        if writer == rank:
            mine[name] = Chunk(_copy(tensor), shape, (0,) * len(shape))
    return mine


def assemble(shape: tuple[int, ...], chunks: list[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """The whole tensor of its chunks, given as (offset, values)."""
    if len(chunks) == 1:
        return chunks[0][1]
    whole = torch.empty(shape, dtype=chunks[0][1].dtype)
    for offset, values in chunks:
        place = tuple(
            slice(begin, begin + size) for begin, size in zip(offset, values.shape, strict=True)
        )
        whole[place] = values
    return whole


def distribute_like(value: Tensor, template: Tensor) -> Tensor:
    """A whole tensor in the layout of `template`: a copy of the part of this worker, if a DTensor.

    Nothing is sent: all workers have the whole.
    """
    if not isinstance(template, DTensor):
        return value
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = template.device_mesh, template.placements
    shape, offset = compute_local_shape_and_global_offset(template.shape, mesh, placements)
    part = value[tuple(slice(b, b + n) for b, n in zip(offset, shape, strict=True))]
    part = part.to(template.device, copy=True).contiguous()
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=template.shape, stride=template.stride()
    )


def _local_part(tensor: DTensor) -> Chunk | None:
    """The shard of this worker; None when it is empty or another worker writes the same one."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    copies = zip(coordinate or (), tensor.placements, strict=True)
    if any(place and isinstance(kind, Replicate) for place, kind in copies):
        return None
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    local = tensor.to_local()
    if not local.numel() and tensor.numel():
        return None
    return Chunk(_copy(local), tuple(tensor.shape), tuple(offset))


def _copy(tensor: Tensor) -> Tensor:
    """Training goes on while the copy is written."""
    return tensor.detach().to("cpu", copy=True).contiguous()
