"""Matrix products by oneDNN on x86 processors, where PyTorch's default (MKL) is slow on AMD.

PyTorch multiplies float32 matrices with MKL, which runs AVX2 kernels on AMD processors; oneDNN, a
part of the same build, runs AVX-512 ones there and is about twice as fast on the sizes of a ViT
(``tests/benchmarks/bench_encoders.py``). Results differ in the order of summation only.
"""

from __future__ import annotations

import platform
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_X86 = platform.machine().lower() in {"x86_64", "amd64"}


def onednn_fits(*tensors: Tensor) -> bool:
    """Whether :func:`product` may multiply these: `onednn_takes` them, nothing to differentiate."""
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)) and onednn_takes(
        *tensors
    )


def onednn_takes(*tensors: Tensor) -> bool:
    """Whether oneDNN is the better one for these: float32 on an x86 CPU.

    False while a model is traced, compiled, exported or autocast, which need PyTorch's own
    operations, and after ``torch.backends.mkldnn.set_flags(False)``.
    """
    return (
        _X86
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch.is_autocast_enabled("cpu")
    )


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["none", "gelu"] = "none",
) -> Tensor:
    """``activation(x @ weight.T + bias)`` by oneDNN; call it only where :func:`onednn_fits`.

    Args:
        x: [..., K].
        weight: [M, K].
        bias: [M].
        activation: ``gelu`` is the exact one (erf).

    Returns:
        [..., M].
    """
    # With strided operands oneDNN falls back to loops that are a hundred times slower.
    return torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight.contiguous(), bias, activation, [], "none"
    )


class Linear(nn.Linear):
    """`nn.Linear` with the products of this module."""

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``, [..., K] -> [..., M]."""
        if onednn_fits(x, self.weight):
            return product(x, self.weight, self.bias)
        return functional.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """``gelu(forward(x))`` in one pass over the output."""
        if onednn_fits(x, self.weight):
            return product(x, self.weight, self.bias, "gelu")
        return functional.gelu(functional.linear(x, self.weight, self.bias))


def accelerate(module: nn.Module) -> None:
    """Let every `nn.Linear` inside `module` multiply as `Linear` does; tensors and names stay."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear
