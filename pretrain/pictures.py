"""Pictures of a run: what the networks see, and what patches have come to mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core_mri.models.encoder import Encoder
from pretrain.views import Views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_LOCALS = 4


def views_picture(views: Views, masks: Tensor) -> Figure:
    """A row for each slice: its global views, one of them masked, some local views."""
    from core_mri.pictures import contact_sheet

    images, titles = [], []
    locals_ = views.local_views[:, :_SHOWN_LOCALS, 0].cpu().numpy()
    patch = views.global_views.shape[-1] // masks.shape[-1]
    for row, (globals_, mask) in enumerate(zip(views.global_views.cpu(), masks.cpu(), strict=True)):
        shown = max(view for view in range(len(globals_)) if mask[view].any() or view == 0)
        hidden = mask[shown].repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        images += [view[0].numpy() for view in globals_]
        images += [torch.where(hidden, 0.0, globals_[shown, 0]).numpy(), *locals_[row]]
        titles += [f"global {number + 1}" for number in range(len(globals_))]
        titles += [f"masked, {shown + 1}"]
        titles += [f"local {number + 1}" for number in range(locals_.shape[1])]
    columns = views.global_views.shape[1] + 1 + locals_.shape[1]
    return contact_sheet(images, titles, columns=columns)


@torch.no_grad()
def patches_picture(encoders: Mapping[str, Encoder], images: Tensor) -> Figure:
    """A row for each slice: the slice, then its patches in the colors of each encoder.

    Red, green and blue are the first three principal components of the patches of all slices shown,
    so equal colors mean alike patches, also of different slices; colors of different encoders have
    nothing in common. After DINOv2 (arXiv 2304.07193), figure 1.

    Args:
        encoders: Name to encoder.
        images: [N, 1, S, S] in [0, 1].
    """
    from core_mri.pictures import contact_sheet, principal_components

    columns: list[list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = [
        list(images[:, 0].cpu().float().numpy())
    ]
    for encoder in encoders.values():
        patches = encoder(images.to(next(encoder.parameters()).device).float()).patches
        stacked = patches.float().flatten(0, 1).cpu().numpy()  # [N * h, w, D]
        colors, _ = principal_components(stacked)
        columns.append(list(colors.reshape(*patches.shape[:3], 3)))
    rows = zip(*columns, strict=True)
    titles = ["slice", *encoders] * len(images)
    return contact_sheet([cell for row in rows for cell in row], titles, columns=len(columns))
