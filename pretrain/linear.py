"""Matrix products of linear layers with gradients, by oneDNN where `core_mri.models.linear` would.

Elsewhere these are `torch.nn.functional.linear`. The sums are the same up to their order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from core_mri.models import linear as linear_layers


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: [N, I].
        weight: [O, I].
        bias: [O].

    Returns:
        [N, O].
    """
    if not onednn_takes(x):
        return functional.linear(x, weight, bias)
    result: Tensor = _OneDNNLinear.apply(x, weight, bias)
    return result


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` without gradient: [N, O] from [N, I] and [O, I], in their common type."""
    return _multiply(a, b, None) if onednn_takes(a) else a @ b.mT


def onednn_takes(x: Tensor) -> bool:
    """Whether products with `x` go to oneDNN."""
    return x.numel() > 0 and linear_layers.onednn_takes(x)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (
            _multiply(grad, weight.mT, None) if ctx.needs_input_grad[0] else None,
            _multiply(grad.mT, x.mT, None) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator that torch.compile itself puts in place of a linear layer on processors.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
