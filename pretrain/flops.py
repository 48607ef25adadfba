"""How many operations a step is, and how many a device can do.

Multiplications and additions of matrix products, two for each pair. Forward, with N tokens of P
patches (side p) and D width:

- an encoder: ``2 P p^2 D + depth (24 N D^2 + 4 N^2 D)`` for each crop; the second term holds qkv,
  projection and MLP, the third both products of attention;
- a head: ``2 (D H + H^2 + H E + E K)`` for each row, H hidden, E bottleneck, K prototypes.

The student counts three times, since backward is twice as much; teacher and anchor once.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from core_mri.models.encoder import Encoder
from pretrain.config import ObjectiveConfig, PretrainConfig
from pretrain.linear import product

_TENSOR_CORES = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bfloat16 FLOP/s by what `torch.cuda.get_device_name` holds, the first that fits; from
NVIDIA's data sheets, which print twice as much where they count sparsity."""


class StepFlops(NamedTuple):
    """Operations of one step of the whole batch."""

    nominal: float
    """As if stochastic depth left nothing out."""
    kept: float
    """Without what it leaves out, a part `drop_path` of the student's blocks."""


class Peak(NamedTuple):
    """What a device can do."""

    flops_per_second: float
    source: str


def step_flops(config: PretrainConfig, encoder: Encoder) -> StepFlops:
    """Operations of a step of student and teacher, with as many masked patches as are expected.

    Gram anchoring counts where it starts with the run.

    Args:
        config: Of the run.
        encoder: Its encoder.
    """
    views, objective = config.views, config.objective
    images, local = config.batch_size, config.batch_size * views.num_local
    large = encoder_flops(encoder, views.global_size)
    small = encoder_flops(encoder, views.local_size)
    anchored = objective.gram_weight > 0 and objective.gram_start == 0
    watching = (1 + anchored) * 2 * images * sum(large)
    patches = (views.global_size // encoder.patch_size) ** 2
    masked = 2 * images * patches * config.masking.probability * sum(config.masking.ratio) / 2
    rows = 3 * (2 * images + local + masked) + 2 * images + masked
    heads = rows * head_flops(objective, encoder.embed_dim)
    patching = 3 * (2 * images * large[0] + local * small[0])
    blocks = 3 * (2 * images * large[1] + local * small[1])
    rest = watching + heads + patching
    return StepFlops(rest + blocks, rest + (1 - config.drop_path) * blocks)


def encoder_flops(encoder: Encoder, side: int) -> tuple[float, float]:
    """Forward operations of patch embedding and of all blocks, for one crop of `side` px."""
    patches = (side // encoder.patch_size) ** 2
    tokens, width = patches + encoder.vit.num_prefix_tokens, encoder.embed_dim
    blocks = encoder.depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    return 2 * patches * encoder.patch_size**2 * width, blocks


def head_flops(objective: ObjectiveConfig, width: int) -> float:
    """Forward operations of a head and its prototypes, for one row of `width`."""
    hidden, bottleneck = objective.head_hidden, objective.head_bottleneck
    mlp = width * hidden + hidden**2 + hidden * bottleneck
    return 2 * (mlp + bottleneck * objective.num_prototypes)


def peak_of(device: torch.device, precision: str) -> Peak:
    """That of the data sheet for bfloat16 on a known GPU, else of square products measured now.

    Args:
        device: Where steps run.
        precision: ``float32`` or ``bfloat16``.
    """
    if device.type == "cuda" and precision == "bfloat16":
        name = torch.cuda.get_device_name(device)
        for known, flops in _TENSOR_CORES.items():
            if known in name:
                return Peak(flops, f"data sheet of {name}")
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        float(product(a, b)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return Peak(2 * side**3 / min(seconds), f"measured here, {side} x {side} {precision} products")
