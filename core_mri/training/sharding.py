"""Tensors of which each worker holds a part, the DTensors of FSDP2; others pass as they are."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of this worker, sharing memory with `tensor` and without its history."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """All parts together; of a DTensor, all workers must ask for it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
