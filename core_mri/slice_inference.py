"""A whole volume through a `Segmenter`, slice by slice, back on the stored grid.

Every slice goes through the encoder once for each view (mirrored or not, each scale, each window),
however many neighbours look at it. Shapes: S slices, B of a batch, C sequences, K classes, h x w
pixels of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.consistency import remove_islands, smooth_across
from core_mri.models.segmenter import Segmenter
from core_mri.slice_grid import SliceGrid


@torch.inference_mode()
def segment_slices(
    model: Segmenter,
    slices: npt.NDArray[np.float32],
    spacing_mm: Sequence[float],
    *,
    image_size: int | None = None,
    batch_size: int = 16,
) -> npt.NDArray[np.uint8]:
    """The class of every pixel, by ``model.inference``.

    Memory: a batch of logits on the stored grid; with smoothing across slices the probabilities of
    the whole volume.

    Args:
        model: In evaluation mode.
        slices: [S, H, W] in [0, 1], in order; [C, S, H, W] of several sequences.
        spacing_mm: Distance of slices, rows and columns.
        image_size: Side of the encoder's window, by default the model's.
        batch_size: Slices at a time.

    Returns:
        [S, H, W].
    """
    inference = model.inference
    channels = slices[None] if slices.ndim == 3 else slices
    views = [
        _View(model, channels, spacing_mm, image_size or model.image_size, mirror, scale)
        for scale in inference.scales
        for mirror in ((False, True) if inference.mirror else (False,))
    ]
    scores = _scores(views, channels.shape[1], batch_size)
    if inference.smoothing_mm:
        smooth = smooth_across(torch.cat(list(scores)), spacing_mm[0], inference.smoothing_mm)
        scores = iter([smooth])
    classes = np.concatenate([part.argmax(1).to(torch.uint8).cpu().numpy() for part in scores])
    return remove_islands(classes, inference.smallest_island)


def _scores(views: Sequence[_View], count: int, batch_size: int) -> Iterator[Tensor]:
    """Mean probabilities of the views, batches of [B, K, H, W]."""
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        total = views[0].logits(start, stop).softmax(1)
        for view in views[1:]:
            total += view.logits(start, stop).softmax(1)
        yield total / len(views)


class _View:
    """One way to look at the slices; asked for batches in order."""

    def __init__(
        self,
        model: Segmenter,
        channels: npt.NDArray[np.float32],
        spacing_mm: Sequence[float],
        size: int,
        mirror: bool,
        scale: float,
    ) -> None:
        patch, inference = model.encoder.patch_size, model.inference
        rows, columns = channels.shape[-2:]
        self.model, self.mirror = model, mirror
        self.channels = channels[..., ::-1] if mirror else channels
        self.device = model.encoder.mask_token.device
        self.grid = SliceGrid(
            rows=rows,
            columns=columns,
            size=size if inference.pixel_mm else max(1, round(size * scale / patch)) * patch,
            pixel_mm=inference.pixel_mm / scale,
            spacing_mm=(spacing_mm[1], spacing_mm[2]),
        )
        self.size = self.grid.size
        self.windows = windows(self.grid.shape, self.size, inference.overlap)
        self.importance = _importance(self.size).to(self.device) if len(self.windows) > 1 else None
        self.seen: list[dict[int, tuple[list[Tensor], Tensor]]] = [{} for _ in self.windows]
        """By window: slice to its tokens, [C, h, w, D] a depth, and its image [C, h, w]."""

    def logits(self, start: int, stop: int) -> Tensor:
        """[B, K, H, W] of slices start to stop."""
        first, last = self._reach(start, stop)
        images = torch.cat(
            [self.grid.images(channel[first:last]) for channel in self.channels], 1
        ).to(self.device)
        answers = [
            self._window(images[..., y : y + self.size, x : x + self.size], start, stop, seen)
            for (y, x), seen in zip(self.windows, self.seen, strict=True)
        ]
        if self.importance is None:
            found = answers[0]
        else:
            found = answers[0].new_zeros(*answers[0].shape[:2], *self.grid.shape)
            weight = torch.zeros(self.grid.shape, device=self.device)
            for (y, x), answer in zip(self.windows, answers, strict=True):
                here = (slice(y, y + self.size), slice(x, x + self.size))
                found[:, :, here[0], here[1]] += answer * self.importance
                weight[here] += self.importance
            found /= weight
        restored = self.grid.restore(found)
        return restored.flip(-1) if self.mirror else restored

    def _reach(self, start: int, stop: int) -> tuple[int, int]:
        """Slices that those from start to stop look at."""
        neighbours = self.model.neighbours
        return max(0, start - neighbours), min(self.channels.shape[1], stop + neighbours)

    def _window(
        self,
        images: Tensor,
        start: int,
        stop: int,
        seen: dict[int, tuple[list[Tensor], Tensor]],
    ) -> Tensor:
        """[B, K, size, size]; `images` [., C, size, size] are those of `_reach`."""
        model = self.model
        if not model.neighbours:
            answer: Tensor = model(images)
            return answer
        first, last = self._reach(start, stop)
        for old in [index for index in seen if index < first]:
            del seen[old]
        new = [index for index in range(first, last) if index not in seen]
        if new:
            batch = images[[index - first for index in new]]
            planes = batch.flatten(0, 1)[:, None]
            encoded = model.encoder.intermediates(planes, model.depths)
            levels = [level.unflatten(0, batch.shape[:2]) for level in encoded]
            for place, index in enumerate(new):
                seen[index] = ([level[place] for level in levels], batch[place])
        looked_at = neighbour_windows(range(start, stop), model.neighbours, self.channels.shape[1])
        order = looked_at.flatten().tolist()
        tokens = [
            torch.stack([seen[index][0][depth] for index in order])
            .unflatten(0, looked_at.shape)
            .flatten(1, 2)
            for depth in range(len(model.depths))
        ]
        stacked = torch.stack([seen[index][1] for index in order]).unflatten(0, looked_at.shape)
        decoded: Tensor = model.head(tokens, stacked.flatten(1, 2))
        return decoded


def neighbour_windows(indices: Sequence[int], neighbours: int, count: int) -> Tensor:
    """The slices each slice looks at, [B, 2 neighbours + 1]; at the ends the last one again."""
    offsets = torch.arange(-neighbours, neighbours + 1)
    return (torch.as_tensor(list(indices))[:, None] + offsets).clamp(0, count - 1)


def windows(shape: tuple[int, int], size: int, overlap: float) -> list[tuple[int, int]]:
    """Top left corners of windows that cover an image, as MONAI's sliding window places them."""
    if max(shape) <= size:
        return [(0, 0)]  # MONAI, seconds to import, would say the same
    from monai.data.utils import dense_patch_slices

    step = max(1, int(size * (1 - overlap)))
    placed = dense_patch_slices(shape, (size, size), (step, step))
    return [(rows.start, columns.start) for rows, columns in placed]


def _importance(size: int) -> Tensor:
    """MONAI's Gaussian weight of a window's pixels, [size, size]."""
    from monai.data.utils import compute_importance_map

    found = compute_importance_map((size, size), mode="gaussian", sigma_scale=0.125)
    return torch.as_tensor(found).clamp_min(1e-3)
