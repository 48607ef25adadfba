"""Matrix products of linear layers; on a processor in float32 by oneDNN instead of torch's BLAS.

torch multiplies float32 matrices on processors by MKL, which on those of AMD leaves half of the
vector width unused; oneDNN, which torch ships for bfloat16 and convolutions, does not. The sums are
the same up to their order. Elsewhere (autocast, other devices, inside `torch.compile`) these are
`torch.nn.functional.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


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
