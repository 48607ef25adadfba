"""How much memory of a GPU a run takes, and how much it sends, by arithmetic.

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

Where n workers divide the networks (`pretrain.sharding`), weights, gradients, AdamW and teacher are
``1 / n`` of that, and there are no copies. Whole are, with P_b parameters of a block, P_h of both
heads, R of what is neither, r bytes of a reduced number:

- weights: the student's heads ``(2 + b) P_h`` in bfloat16, ``4 P_h`` in float32, two blocks
  ``2 b P_b``, the rest of student and teacher ``8 R``; with LayerScale the products of its factors
  and weights, which autograd keeps: ``5 b D^2`` a block;
- gradients: of one block or head, as they come and as they are sent: ``(4 + r) max(P_b, P_h / 2)``,
  and of the rest ``4 R``.

What the allocator loses and the context takes is `RESERVED`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pretrain.config import PretrainConfig
from pretrain.flops import (
    block_parameters,
    encoder_config,
    encoder_parameters,
    head_parameters,
    head_rows,
    step_work,
    student_tokens,
)
from pretrain.prototypes import KEPT_LOGITS
from pretrain.sampler import micro_batches
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


def memory_need(config: PretrainConfig, precision: str, workers: int = 1) -> MemoryNeed:
    """What one GPU holds at the end of a forward pass.

    Args:
        config: Of the run, with the images of one GPU as `batch_size`.
        precision: ``bfloat16`` or ``float32``.
        workers: Among which networks are divided if `PretrainConfig.sharded` says so.
    """
    encoder, objective = encoder_config(config), config.objective
    size = 2 if precision == "bfloat16" else 4
    body = encoder_parameters(encoder)
    parameters = body + head_parameters(config)
    student_rows, teacher_rows = head_rows(config)
    hidden = 4 * objective.head_hidden + encoder.embed_dim + objective.head_bottleneck
    parts, copies, sent = 1, (2.0 if size == 2 else 0.0) * parameters, 0.0
    if config.sharded(workers):
        parts = workers
        block, heads, rest = _units(config)
        scaled = 5 * encoder.embed_dim**2 * encoder.depth * (encoder.layer_scale > 0)
        copies = (6 if size == 2 else 4) * heads + size * (2 * block + scaled) + 8 * rest
        sent = (4 + _reduced(config)) * max(block, heads / 2) + 4 * rest
    return MemoryNeed(
        weights=4 * parameters / parts + copies,
        gradients=4 * parameters / parts + sent,
        optimizer=8 * parameters / parts,
        teacher=4 * (parameters + body * (objective.gram_weight > 0)) / parts,
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


def traffic(config: PretrainConfig, precision: str, workers: int) -> float:
    """Bytes of a step that go round the workers, of which each sends a part ``(n - 1) / n``.

    An all-reduce goes round twice: ``2 r P``. With divided networks gradients do so once, ``r P``,
    for each of the parts of `micro_batch`. Besides, gathered are for each part the student's blocks
    twice and an anchor's once (``b`` a parameter), the student's heads and the rest of all (4); and
    once the teacher's blocks (``b``) and heads (4).

    Args:
        config: Of the run, with the images of one GPU as `batch_size`.
        precision: ``bfloat16`` or ``float32``.
        workers: n.
    """
    encoder = encoder_config(config)
    parameters = encoder_parameters(encoder) + head_parameters(config)
    if not config.sharded(workers):
        return 2 * _reduced(config) * parameters
    size = 2 if precision == "bfloat16" else 4
    block, heads, rest = _units(config)
    parts = micro_batches(config.batch_size, 1, config.objective.koleo_group, config.micro_batch)
    anchors = int(config.objective.gram_weight > 0)
    gathered = size * block * encoder.depth * ((2 + anchors) * parts + 1)
    gathered += 4 * (heads * (parts + 1) + rest * (2 + anchors) * parts)
    return gathered + _reduced(config) * parameters * parts


def _units(config: PretrainConfig) -> tuple[int, int, int]:
    """Parameters of a block, of both heads and of what is neither: see `pretrain.sharding`."""
    encoder = encoder_config(config)
    block = block_parameters(encoder)
    rest = encoder_parameters(encoder) - encoder.depth * block
    return block, head_parameters(config), rest


def _reduced(config: PretrainConfig) -> int:
    """Bytes of a gradient that is sent."""
    return 2 if config.reduce_dtype == "bfloat16" else 4


def largest_batch(config: PretrainConfig, precision: str, memory: float, workers: int = 1) -> int:
    """Images of one GPU, in whole KoLeo groups, that its memory holds; 0 when not one group does.

    Args:
        config: Of the run.
        precision: ``bfloat16`` or ``float32``.
        memory: Bytes of the GPU, of which `RESERVED` is left alone.
        workers: As in `memory_need`.
    """
    group = config.objective.koleo_group

    def fits(groups: int) -> bool:
        need = memory_need(replace(config, batch_size=groups * group), precision, workers)
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
