"""Resolution stages: the same run goes on with other crops, at full sharpness of its schedules.

Training at high resolution from the first step costs several times as much; a last part of a tenth
gives most of its use (DINOv2, arXiv 2304.07193: 518 px at the end).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from pretrain.config import PretrainConfig
from pretrain.sampler import Indices


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with one size of views and batches."""

    number: int
    """0 is what `PretrainConfig.views` says."""
    first_step: int
    first_sample: int
    """Global sample index of the first slice of its first step."""
    config: PretrainConfig
    """The run's, with the sizes of this stage."""


def stages_of(config: PretrainConfig) -> list[Stage]:
    """All stages of a run, the first one from step 0."""
    first_steps = config.steps - sum(stage.steps for stage in config.stages)
    stages = [Stage(0, 0, 0, config)]
    length = first_steps
    for number, stage in enumerate(config.stages, start=1):
        before = stages[-1]
        views = replace(config.views, global_size=stage.global_size, local_size=stage.local_size)
        stages.append(
            Stage(
                number,
                before.first_step + length,
                before.first_sample + length * before.config.batch_size,
                replace(config, views=views, batch_size=stage.batch_size or config.batch_size),
            )
        )
        length = stage.steps
    return stages


def stage_at(config: PretrainConfig, step: int) -> Stage:
    """The stage that step `step` (0-based) belongs to."""
    return [stage for stage in stages_of(config) if stage.first_step <= step][-1]


def samples_at(config: PretrainConfig, step: int) -> Indices:
    """Global sample indices of a step, over all workers: they go on across stages."""
    stage = stage_at(config, step)
    size = stage.config.batch_size
    first = stage.first_sample + (step - stage.first_step) * size
    return np.arange(first, first + size)


def resize(module: nn.Module, optimizer: torch.optim.Optimizer, image_size: int) -> None:
    """Resample the position tables of all encoders in `module`, and what the optimizer holds.

    Tables and first moments are resampled alike, bicubic with antialiasing; second moments
    bilinear, which keeps them from turning negative.

    Args:
        module: With any number of `Encoder`, such as those of student and teacher.
        optimizer: Of its parameters.
        image_size: New side of the global views, px.
    """
    for encoder in module.modules():
        if not isinstance(encoder, Encoder) or encoder.config.image_size == image_size:
            continue
        if encoder.config.positions != "rotary":  # which are made anew for each grid
            _resize_table(encoder, optimizer, image_size)
        encoder.vit.patch_embed.set_input_size(img_size=image_size)
        encoder.config = replace(encoder.config, image_size=image_size)


def _resize_table(encoder: Encoder, optimizer: torch.optim.Optimizer, image_size: int) -> None:
    old = encoder.vit.pos_embed
    state: dict[str, Any] = optimizer.state.pop(old, {})
    for name in [name for name in state if name.startswith("exp_avg")]:
        kind = "bilinear" if name == "exp_avg_sq" else "bicubic"
        state[name] = _resampled(encoder, state[name], image_size, kind)
    table = _resampled(encoder, old.data, image_size, "bicubic")
    new = nn.Parameter(table, requires_grad=old.requires_grad)
    if state:
        optimizer.state[new] = state
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    encoder.vit.pos_embed = new


def positions_for(encoder: Encoder, image_size: int) -> Tensor:
    """The position table of an encoder, resampled for another side of images, px."""
    return _resampled(encoder, encoder.vit.pos_embed.data, image_size, "bicubic")


def _resampled(encoder: Encoder, table: Tensor, image_size: int, interpolation: str) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    side = image_size // encoder.patch_size
    vit = encoder.vit
    result: Tensor = resample_abs_pos_embed(
        table,
        new_size=[side, side],
        old_size=list(vit.patch_embed.grid_size),
        num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
        interpolation=interpolation,
    )
    return result.contiguous()
