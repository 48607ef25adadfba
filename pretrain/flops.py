"""How much work a step is: operations, and what passes through memory beside them.

Operations are multiplications and additions of matrix products, two for each pair. Forward, with N
tokens of P patches (side p) and D width:

- an encoder: ``2 P p^2 D + depth (24 N D^2 + 4 N^2 D)`` for each crop; the second term holds qkv,
  projection and MLP, the third both products of attention;
- a head: ``2 (D H + H^2 + H E + E K)`` for each row, H hidden, E bottleneck, K prototypes.

The student counts three times, since backward is twice as much; teacher and anchor once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from core_mri.models.registry import MODELS, EncoderConfig
from pretrain.config import ObjectiveConfig, PretrainConfig


class StepFlops(NamedTuple):
    """Operations of one step of the whole batch."""

    nominal: float
    """As if stochastic depth left nothing out."""
    kept: float
    """Without what it leaves out, a part `drop_path` of the student's blocks."""
    heads: float
    """Those of the heads, which are in both."""


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What the time of a step grows with; see `pretrain.calibration`."""

    encoder_flops: float
    """Without what stochastic depth leaves out."""
    encoder_elements: float
    """Tokens x width x depth, three times for the student: what passes through memory beside the
    products. A block reads or writes about 18 numbers for each of N x D, and 4 for each of
    heads x N^2 where attention writes its matrix, which counts as 4/18."""
    head_flops: float
    logits: float
    """Numbers in the rows x prototypes of student and teacher."""
    pixels: float
    """Of all views."""
    parameters: float
    """Of the student."""


def encoder_config(config: PretrainConfig) -> EncoderConfig:
    """The encoder of a run, without building it."""
    return replace(
        MODELS[config.model],
        image_size=config.views.global_size,
        num_registers=config.num_registers,
        layer_scale=config.layer_scale,
    )


def masked_patches(config: PretrainConfig) -> float:
    """Masked patches of an image, over both global views, as expected."""
    patches = (config.views.global_size // MODELS[config.model].patch_size) ** 2
    return 2 * patches * config.masking.probability * sum(config.masking.ratio) / 2


def step_flops(config: PretrainConfig) -> StepFlops:
    """Operations of a step of student and teacher, with as many masked patches as are expected.

    Gram anchoring counts where it starts with the run.
    """
    views, images, encoder = config.views, config.batch_size, encoder_config(config)
    local = images * views.num_local
    large = encoder_flops(encoder, views.global_size)
    small = encoder_flops(encoder, views.local_size)
    watching = _watchers(config) * 2 * images * sum(large)
    student_rows, teacher_rows = head_rows(config)
    heads = (3 * student_rows + teacher_rows) * head_flops(config.objective, encoder.embed_dim)
    patching = 3 * (2 * images * large[0] + local * small[0])
    blocks = 3 * (2 * images * large[1] + local * small[1])
    rest = watching + heads + patching
    return StepFlops(rest + blocks, rest + (1 - config.drop_path) * blocks, heads)


def step_work(config: PretrainConfig, *, attention_matrix: bool) -> StepWork:
    """All that the time of a step grows with.

    Args:
        config: Of the run.
        attention_matrix: Attention writes its matrix to memory, as on processors, instead of being
            one fused kernel, as on GPUs.
    """
    views, images, encoder = config.views, config.batch_size, encoder_config(config)
    flops = step_flops(config)
    large, small = (
        _elements(encoder, side, attention_matrix) for side in (views.global_size, views.local_size)
    )
    student = 3 * (1 - config.drop_path) * images * (2 * large + views.num_local * small)
    pixels = 2 * views.global_size**2 + views.num_local * views.local_size**2
    return StepWork(
        encoder_flops=flops.kept - flops.heads,
        encoder_elements=student + _watchers(config) * 2 * images * large,
        head_flops=flops.heads,
        logits=sum(head_rows(config)) * config.objective.num_prototypes,
        pixels=images * pixels,
        parameters=encoder_parameters(encoder) + head_parameters(config),
    )


def head_rows(config: PretrainConfig) -> tuple[float, float]:
    """Rows that the student's and the teacher's heads see in a step, over both heads."""
    images, masked = config.batch_size, masked_patches(config)
    return images * (2 + config.views.num_local + masked), images * (2 + masked)


def encoder_flops(encoder: EncoderConfig, side: int) -> tuple[float, float]:
    """Forward operations of patch embedding and of all blocks, for one crop of `side` px."""
    patches, tokens, width = *_tokens(encoder, side), encoder.embed_dim
    blocks = encoder.depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    return 2 * patches * encoder.patch_size**2 * width, blocks


def head_flops(objective: ObjectiveConfig, width: int) -> float:
    """Forward operations of a head and its prototypes, for one row of `width`."""
    hidden, bottleneck = objective.head_hidden, objective.head_bottleneck
    mlp = width * hidden + hidden**2 + hidden * bottleneck
    return 2 * (mlp + bottleneck * objective.num_prototypes)


def encoder_parameters(encoder: EncoderConfig) -> int:
    """Parameters, those of the mask token included.

    ``(p^2 + 1) D`` of the patch embedding, D for each position, the class, each register and the
    mask; for each block ``12 D^2 + 13 D``, with LayerScale ``2 D`` more; ``2 D`` of the last norm.
    """
    width = encoder.embed_dim
    _, tokens = _tokens(encoder, encoder.image_size)
    prefix = 1 + encoder.num_registers
    vectors = encoder.patch_size**2 + 1 + tokens + prefix + 1 + 2
    return vectors * width + encoder.depth * block_parameters(encoder)


def block_parameters(encoder: EncoderConfig) -> int:
    """Parameters of one block."""
    width = encoder.embed_dim
    return 12 * width**2 + (13 + 2 * (encoder.layer_scale > 0)) * width


def head_parameters(config: PretrainConfig) -> int:
    """Of both heads: ``D H + H + H^2 + H + H E + E + E K`` each."""
    hidden, bottleneck = config.objective.head_hidden, config.objective.head_bottleneck
    width = MODELS[config.model].embed_dim
    biases = 2 * hidden + bottleneck
    mlp = width * hidden + hidden**2 + hidden * bottleneck + biases
    return 2 * (mlp + bottleneck * config.objective.num_prototypes)


def student_tokens(config: PretrainConfig) -> int:
    """Tokens of all views of one image."""
    views, encoder = config.views, encoder_config(config)
    large, small = (_tokens(encoder, side)[1] for side in (views.global_size, views.local_size))
    return 2 * large + views.num_local * small


def _tokens(encoder: EncoderConfig, side: int) -> tuple[int, int]:
    """Patches and tokens of a crop."""
    patches = (side // encoder.patch_size) ** 2
    return patches, patches + 1 + encoder.num_registers


def _elements(encoder: EncoderConfig, side: int, attention_matrix: bool) -> float:
    _, tokens = _tokens(encoder, side)
    matrix = 4 / 18 * tokens * encoder.num_heads if attention_matrix else 0
    return encoder.depth * tokens * (encoder.embed_dim + matrix)


def _watchers(config: PretrainConfig) -> int:
    """Networks that look at the global views without learning: the teacher, and an anchor."""
    return 1 + (config.objective.gram_weight > 0 and config.objective.gram_start == 0)
