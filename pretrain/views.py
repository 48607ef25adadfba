"""Multi-crop views of single-channel slices, made on the device for a whole batch at once.

Shapes: B slices of their own sizes, G global and V local views, S and s their sides. What happens
to a sample depends on the seed and its global index alone: not on the worker, the batch or its
neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from data_registry.slices import StoredSlice
from pretrain.augmentations import NUM_DRAWS, augment
from pretrain.config_views import ViewsConfig
from pretrain.crops import BOX_DRAWS, Floats, crop_resize, draw_boxes
from pretrain.sampler import VIEWS, random_stream
from pretrain.upload import upload

MIN_SIDE = 16
"""Shortest side of a slice that is used, px."""


class Views(NamedTuple):
    """The views of a batch, float32 in [0, 1]."""

    global_views: Tensor
    """[B, G, 1, S, S]."""
    local_views: Tensor
    """[B, V, 1, s, s]."""
    num_upsampled: int
    """Slices with a side shorter than that of a global view."""


def make_views(
    slices: Sequence[StoredSlice],
    samples: npt.NDArray[np.int64],
    config: ViewsConfig,
    *,
    seed: int,
    device: torch.device,
    adjacent: Sequence[StoredSlice] | None = None,
) -> Views:
    """Random crops of every slice, with random intensities.

    Args:
        slices: B slices, of any sizes.
        samples: [B], global sample indices.
        config: Sizes, scales, probabilities.
        seed: Of the run.
        device: Where the views are computed.
        adjacent: [B], slices that the second global view and every other local one show instead.

    Raises:
        DataError: DATA-09 for a slice with a side shorter than `MIN_SIDE` px.
    """
    for item in (*slices, *(adjacent or ())):
        rows, columns = item.payload.shape
        if min(rows, columns) < MIN_SIDE:
            raise DataError(
                "DATA-09",
                f"volume {item.volume_id}, slice {item.index}: {rows}x{columns} px, at least "
                f"{MIN_SIDE} are needed.",
                fix=f"Leave it out with `where: rows >= {MIN_SIDE} and columns >= {MIN_SIDE}`.",
            )
    num_views = config.num_global + config.num_local
    uniform = np.stack(
        [
            random_stream(seed, int(sample), VIEWS).random((num_views, BOX_DRAWS + 2 + NUM_DRAWS))
            for sample in samples
        ]
    )
    sources = [(slice(None), slices)] if adjacent is None else [
        (slice(0, None, 2), slices), (slice(1, None, 2), adjacent)
    ]  # fmt: skip
    images = [upload(own, device) for _, own in sources]
    shapes = [np.array([item.payload.shape for item in own]) for _, own in sources]
    allowed = np.array([_may_flip(item, config) for item in slices])[:, None]
    parts = []
    for size, scale, columns in (
        (config.global_size, config.global_scale, slice(0, config.num_global)),
        (config.local_size, config.local_scale, slice(config.num_global, None)),
    ):
        own = uniform[:, columns]
        views = torch.empty(*own.shape[:2], size, size, device=device)
        for (which, _), batch, shape in zip(sources, images, shapes, strict=True):
            boxes = draw_boxes(shape, own[:, which, :BOX_DRAWS], scale, config.aspect)
            views[:, which] = crop_resize(batch, torch.from_numpy(boxes), size)
        flat = views.flatten(0, 1)
        _flip(flat, own[..., BOX_DRAWS : BOX_DRAWS + 2], allowed, config)
        augment(flat, own[..., BOX_DRAWS + 2 :].reshape(-1, NUM_DRAWS), config)
        parts.append(views[:, :, None])
    small = sum(min(item.payload.shape) < config.global_size for item in slices)
    return Views(parts[0], parts[1], small)


def pad_slices(slices: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    """Slices of different sizes as one batch [B, max H, max W], zeros below and to the right."""
    height = max(image.shape[0] for image in slices)
    width = max(image.shape[1] for image in slices)
    batch = torch.zeros(len(slices), height, width)
    for row, image in zip(batch, slices, strict=True):
        row[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    return batch


def _may_flip(item: StoredSlice, config: ViewsConfig) -> bool:
    return any(fnmatchcase(f"{item.region}/{item.plane}", p) for p in config.flip_where)


def _flip(
    views: Tensor, chance: Floats, allowed: npt.NDArray[np.bool_], config: ViewsConfig
) -> None:
    """Flip views [B * V, S, S] in place where `chance` [B, V, 2] says so."""
    for axis, probability in ((-2, config.flip_rows), (-1, config.flip_columns)):
        chosen = np.flatnonzero((chance[..., axis] < probability) & allowed)
        if len(chosen):
            rows = torch.from_numpy(chosen).to(views.device, non_blocking=True)
            views[rows] = views[rows].flip(axis)
