"""What a mask decoder is trained to: SAM's losses (Kirillov et al., arXiv 2304.02643, section 3).

Shapes: N prompts, M masks each, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core_mri.models.promptable import Masks

FOCAL_WEIGHT = 20.0
"""Focal loss to Dice loss, 20 : 1."""


def mask_loss(masks: Masks, targets: Tensor) -> Tensor:
    """``min over masks (20 focal + dice) + mean over masks (iou - estimated iou)^2``, [N].

    With several masks only the best one is pulled to the target, so that the others stay free for
    another meaning of the prompt.

    Args:
        masks: Logits [N, M, H, W] and estimates [N, M].
        targets: [N, H, W] of 0 and 1, none of them empty.
    """
    from monai.losses import DiceLoss, FocalLoss

    wanted = targets[:, None].expand_as(masks.logits).to(masks.logits.dtype)
    focal = FocalLoss(gamma=2.0, reduction="none")(masks.logits, wanted).mean((2, 3))
    dice = DiceLoss(sigmoid=True, reduction="none")(masks.logits, wanted).flatten(1)
    with torch.no_grad():
        inside = masks.logits > 0
        either = (inside | (wanted > 0)).sum((2, 3))
        iou = (inside & (wanted > 0)).sum((2, 3)) / either
    return (FOCAL_WEIGHT * focal + dice).amin(1) + (masks.iou - iou).square().mean(1)
