"""What a device can do: a table of GPUs, and a measurement where there is none.

The numbers of `GPUS` are those of NVIDIA's data sheets. Sheets that count structured sparsity print
twice as many operations as dense products reach; here stand the dense ones. A link is what one GPU
can send to others of its node while it receives as much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; all numbers in units, not in tera or giga."""

    peak: float
    """Dense bfloat16 operations a second."""
    memory: float | None
    """Bytes; None when unknown."""
    bandwidth: float | None
    """Bytes a second between memory and processor; None when unknown."""
    link: float
    """Bytes a second to the other GPUs of a node, one way."""
    source: str


def _sheet(name: str, tflops: float, gigabytes: float, bandwidth: float, link: float) -> Gpu:
    return Gpu(
        peak=tflops * 1e12,
        memory=gigabytes * 1e9,
        bandwidth=bandwidth * 1e9,
        link=link * 1e9,
        source=f"data sheet of {name}",
    )


GPUS = {
    "H200 NVL": _sheet("NVIDIA H200 NVL, links by PCIe 5", 835, 141, 4800, 64),
    "H200": _sheet("NVIDIA H200 SXM", 989, 141, 4800, 450),
    "H100 NVL": _sheet("NVIDIA H100 NVL, links by PCIe 5", 835, 94, 3900, 64),
    "H100 PCIe": _sheet("NVIDIA H100 PCIe, links by PCIe 5", 756, 80, 2000, 64),
    "H100": _sheet("NVIDIA H100 SXM", 989, 80, 3350, 450),
    "A100": _sheet("NVIDIA A100 SXM 80 GB", 312, 80, 2039, 300),
    "L40S": _sheet("NVIDIA L40S, links by PCIe 4", 362, 48, 864, 32),
    "L4": _sheet("NVIDIA L4, links by PCIe 4", 121, 24, 300, 32),
}
"""By what `torch.cuda.get_device_name` holds; the first that fits."""


def known_gpu(device_name: str) -> str | None:
    """The key of `GPUS` for a name such as ``NVIDIA H100 80GB HBM3``."""
    return next((name for name in GPUS if name in device_name), None)


class Peak(NamedTuple):
    """Operations that a device can do."""

    flops_per_second: float
    source: str


def peak_of(device: torch.device, precision: str) -> Peak:
    """That of the data sheet for bfloat16 on a known GPU, else of square products measured now.

    Args:
        device: Where steps run.
        precision: ``float32`` or ``bfloat16``.
    """
    import torch

    from pretrain.linear import product

    if device.type == "cuda" and precision == "bfloat16":
        name = torch.cuda.get_device_name(device)
        known = known_gpu(name)
        if known is not None:
            return Peak(GPUS[known].peak, f"data sheet of {name}")
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        float(product(a, b)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return Peak(2 * side**3 / min(seconds), f"measured here, {side} x {side} {precision} products")
