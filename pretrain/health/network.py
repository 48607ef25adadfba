"""Figures of weights and gradients, and of the batch they came from; computed now and then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core_mri.training.sharding import whole
from pretrain.data import Sample

_STRIDE = 8
"""Of the pixels by which slices are compared: equal slices are equal there."""


@torch.no_grad()
def gradient_norms(student: nn.ModuleDict) -> dict[str, Tensor]:
    """Norm of the gradient of each module of the student: ``grad_norm_NAME``."""
    norms = {}
    for name, module in student.items():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm_{name}"] = whole(nn.utils.get_total_norm(gradients))
    return norms


@torch.no_grad()
def prototype_norms(student: nn.ModuleDict) -> dict[str, Tensor]:
    """Largest norm of a prototype of each head: ``HEAD_prototype_norm``.

    The heads of this package scale prototypes to length 1; a norm that grows without end still
    means that their updates have become too small to turn them.
    """
    return {
        f"{name.removesuffix('.prototypes.weight')}_prototype_norm": whole(
            weight.norm(dim=-1).max()
        )
        for name, weight in student.named_parameters()
        if name.endswith(".prototypes.weight")
    }


def duplicate_rate(samples: Sequence[Sample]) -> float:
    """Part of the slices of a batch that equal an earlier one of it."""
    payloads = [sample.own.payload for sample in samples]
    seen = {(payload.shape, payload[::_STRIDE, ::_STRIDE].tobytes()) for payload in payloads}
    return 1 - len(seen) / len(samples)
