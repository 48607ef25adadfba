"""Gram anchoring: patches keep the similarities that an earlier teacher saw among them.

Late in long runs the dense features of large models decay while class tokens still improve. The
anchor holds the similarities of patches and leaves the features themselves free (DINOv3, arXiv
2508.10104, section 4).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pretrain.config import ObjectiveConfig
from pretrain.objectives import Array

WEIGHT, REFRESH = "gram_weight", "gram_refresh"
"""Schedules: weight of the loss; 1 at steps that begin with a new anchor, else 0."""


def gram_loss(patches: Tensor, anchor: Tensor) -> Tensor:
    """Mean over images and pairs of patches of ``(s_i . s_j - g_i . g_j)^2``, L2-normalized s, g.

    In float32, whatever autocast says.

    Args:
        patches: [B, P, D] of the student.
        anchor: [B, P, D'] of the earlier teacher, for the same crops.

    Returns:
        Scalar.
    """
    with torch.autocast(patches.device.type, enabled=False):
        own, kept = (functional.normalize(x.float(), dim=-1) for x in (patches, anchor))
        return functional.mse_loss(own @ own.mT, kept @ kept.mT)


def gram_schedules(objective: ObjectiveConfig, steps: int) -> dict[str, Array]:
    """`WEIGHT` and `REFRESH`, each an array [steps].

    The first anchor is the teacher before step `gram_start`; a new one is taken every
    `gram_refresh` steps, `gram_max_refreshes` times at most.
    """
    step = np.arange(steps)
    since = step - objective.gram_start
    times = since // objective.gram_refresh
    taken = (
        (since >= 0)
        & (since % objective.gram_refresh == 0)
        & (times <= objective.gram_max_refreshes)
    )
    return {
        WEIGHT: np.where(since >= 0, objective.gram_weight, 0.0),
        REFRESH: taken.astype(np.float64),
    }
