"""Tensors of which each worker holds a part: the DTensors of FSDP2. Plain tensors pass as they are."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of this worker, sharing memory with `tensor` and without its history."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """All parts together; of a DTensor, all workers must ask for it."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor
