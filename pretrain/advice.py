"""What a configuration will probably be sorry for, told before hours are spent."""

from __future__ import annotations

import numpy as np

from pretrain.config import PretrainConfig
from pretrain.data import Slices
from pretrain.health.anchor import MIN_PATIENTS
from pretrain.stages import stages_of
from pretrain.start import suggested_rate

_SHORT_RUN = 5000
"""Steps below which a LayerScale of 1e-5 hardly lets the blocks take part."""
_SAMPLE = 256
"""Slices whose sizes are looked at."""


def advice(config: PretrainConfig, slices: Slices, validation: Slices | None) -> list[str]:
    """One sentence for everything that looks wrong with a run, though it could start.

    Args:
        config: Of the run.
        slices: Its training slices.
        validation: Slices of validation patients, None without any.
    """
    told = []
    volumes, optimizer = len(slices.volumes), config.optimizer
    group = config.objective.koleo_group
    if volumes < group:
        told.append(
            f"{volumes} volume(s) for groups of {group}: a group holds slices of one volume, and "
            "KoLeo pushes neighbors apart. Ingest more volumes, or lower objective.koleo_group."
        )
    if config.start:
        rate = suggested_rate(config.batch_size)
        if optimizer.learning_rate > rate:
            told.append(
                f"optimizer.learning_rate {optimizer.learning_rate:g} is high for trained weights: "
                f"try {rate:.1e} (2e-4 * sqrt(batch_size / 1024))."
            )
        if not config.start_freeze_steps:
            told.append(
                "start_freeze_steps is 0: gradients of random heads reach the trained encoder. "
                f"Try {max(1, min(2500, config.steps // 10))}."
            )
        judged = 0 if validation is None else len({row.subject_id for row in validation.volumes})
        if judged < MIN_PATIENTS or not config.health.probe_every:
            told.append(
                f"nothing stops this run when it spoils its weights: that takes {MIN_PATIENTS} "
                f"validation patients (here {judged}) and health.probe_every > 0."
            )
    elif 0 < config.layer_scale < 1e-3 and config.steps < _SHORT_RUN:
        told.append(
            f"layer_scale {config.layer_scale:g} in a run of {config.steps} steps: the class token "
            "will hardly see the image. Set it to 0."
        )
    if optimizer.warmup_steps > config.steps / 2:
        told.append(
            f"optimizer.warmup_steps {optimizer.warmup_steps} is most of the run. Try "
            f"{config.steps // 10}."
        )
    samples = stages_of(config)[-1]
    total = samples.first_sample + (config.steps - samples.first_step) * samples.config.batch_size
    if total < len(slices):
        told.append(f"the run draws {total} samples of {len(slices)} slices: many are never seen.")
    positions = np.linspace(0, len(slices) - 1, min(_SAMPLE, len(slices))).astype(int)
    sides = [min(slices[int(position)].image.shape) for position in positions]
    size = config.views.global_size
    if np.median(sides) < size / 2:
        told.append(
            f"half of the slices have a side below {int(np.median(sides))} px, and a global view "
            f"has {size}: most of it is interpolated. A smaller views.global_size costs less."
        )
    return told
