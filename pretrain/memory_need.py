"""How much memory of a GPU a run takes, by arithmetic.

Bytes, for P parameters of the student (encoder and both heads), b bytes of a number in products (2
in bfloat16, 4 in float32), B images of a GPU with T tokens in all their views, D width, depth
blocks, K prototypes, E bottleneck, H hidden, N rows of the student's heads, M of the teacher's:

- weights: ``4 P``, and their ``2 P`` copies for bfloat16; gradients: ``4 P``; AdamW: ``8 P``;
- teacher: ``4 P``; the Gram anchor: 4 for each parameter of the encoder;
- activations: ``(8 + 15 b) D`` for each token and block that stochastic depth keeps: 8 for the
  float32 inputs of two norms, and in b bytes their outputs (2), q, k, v (3), the attention before
  and after concatenation (2), the hidden layer before and after GELU (8); and ``(4 H + D + E) b``
  for each row of the heads;
- logits: the teacher's ``b K M``, the student's ``4 min(N K, 2^26)`` that wait for the second pass,
  three chunks ``4 x 4096 N``, and the gradients ``8 K E`` of both heads' prototypes;
- views: 4 for each pixel.

What the allocator loses and the context takes is `RESERVED`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pretrain.config import PretrainConfig
from pretrain.flops import (
    encoder_config,
    encoder_parameters,
    head_parameters,
    head_rows,
    step_work,
    student_tokens,
)
from pretrain.prototypes import KEPT_LOGITS
from pretrain.targets import CHUNK

RESERVED = 0.1
"""Part of a GPU's memory that is not counted on."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    activations: float
    logits: float
    views: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.teacher
            + self.activations
            + self.logits
            + self.views
        )


def memory_need(config: PretrainConfig, precision: str) -> MemoryNeed:
    """What one GPU holds at the end of a forward pass.

    Args:
        config: Of the run, with the images of one GPU as `batch_size`.
        precision: ``bfloat16`` or ``float32``.
    """
    encoder, objective = encoder_config(config), config.objective
    size = 2 if precision == "bfloat16" else 4
    body = encoder_parameters(encoder)
    parameters = body + head_parameters(config)
    student_rows, teacher_rows = head_rows(config)
    hidden = 4 * objective.head_hidden + encoder.embed_dim + objective.head_bottleneck
    return MemoryNeed(
        weights=(6 if precision == "bfloat16" else 4) * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        teacher=4 * parameters + 4 * body * (objective.gram_weight > 0),
        activations=block_activations(config, size) + student_rows * hidden * size,
        logits=size * objective.num_prototypes * teacher_rows
        + 4 * min(student_rows * objective.num_prototypes, KEPT_LOGITS)
        + 12 * CHUNK * student_rows
        + 8 * objective.num_prototypes * objective.head_bottleneck,
        views=4 * step_work(config, attention_matrix=False).pixels,
    )


def block_activations(config: PretrainConfig, size: int) -> float:
    """Bytes that the student's blocks keep for backward; `size` bytes of a number in products."""
    encoder = encoder_config(config)
    tokens = config.batch_size * student_tokens(config)
    kept = tokens * (1 - config.drop_path)
    return (8 + 15 * size) * encoder.embed_dim * encoder.depth * kept


def largest_batch(config: PretrainConfig, precision: str, memory: float) -> int:
    """Images of one GPU, in whole KoLeo groups, that its memory holds; 0 when not one group does.

    Args:
        config: Of the run.
        precision: ``bfloat16`` or ``float32``.
        memory: Bytes of the GPU, of which `RESERVED` is left alone.
    """
    group = config.objective.koleo_group

    def fits(groups: int) -> bool:
        need = memory_need(replace(config, batch_size=groups * group), precision)
        return need.total <= (1 - RESERVED) * memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * group
