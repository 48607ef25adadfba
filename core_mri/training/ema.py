"""Exponential moving average of weights: the teacher of self-distillation."""

from __future__ import annotations

import torch
from torch import nn

from core_mri.training.sharding import local


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student``, buffers copied.

    Args:
        teacher: Changed in place; has the student's parameters, in the same order and, where they
            are shared among workers, in the same parts.
        student: The module that is trained.
        momentum: In [0, 1]; 1 leaves the teacher as it is.
    """
    old = [local(p) for p in teacher.parameters()]
    new = [local(p) for p in student.parameters()]
    torch._foreach_lerp_(old, new, 1 - momentum)
    for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(current)
