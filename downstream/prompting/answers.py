"""Answers of a promptable model to boxes and to 1, 3 and 5 clicks, and their Dice per slice.

Prompts come from the reference (`downstream.prompting.clicks`) and are placed as a user's are: on
the stored pixels. A box is the tightest one, or a careless one: that with noise on its sides.
Shapes: N slices with a target each, H x W stored pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.metrics import dice
from core_mri.models.promptable import PromptableSegmenter
from core_mri.slice_grid import image_to_square, square_to_slices
from downstream.cohort import read_image
from downstream.prompting.clicks import Click, box_of, careless_box, central_click
from downstream.segmentation.data import Pair, read_mask
from downstream.segmentation.predict import Prediction

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.config import Task

METHODS = {1: "1 click", 3: "3 clicks", 5: "5 clicks"}
"""Number of clicks to the name of the method; the others are ``box`` and ``careless box``."""
BATCH = 32
"""Slices embedded or decoded at a time."""

Masks = npt.NDArray[np.bool_]


def place_points(xy: npt.NDArray[np.float32], shape: tuple[int, int], size: int) -> Tensor:
    """Stored pixel indices (x, y) [..., 2] to those of the encoder's square; see `slice_grid`."""
    side = max(shape)
    corner = np.array([(side - shape[1]) // 2, (side - shape[0]) // 2], dtype=np.float32)
    return torch.from_numpy((xy + corner + 0.5) * (size / side) - 0.5).float()


def place_boxes(boxes: npt.NDArray[np.float32], shape: tuple[int, int], size: int) -> Tensor:
    """First and last stored pixels [N, 4] to those of the square; the outer edges stay in place."""
    first, last = boxes[:, :2], boxes[:, 2:]
    edges = [place_points(first - 0.5, shape, size), place_points(last + 0.5, shape, size)]
    return torch.cat([edges[0] + 0.5, edges[1] - 0.5], 1)


@torch.no_grad()
def answer(
    model: PromptableSegmenter,
    embedding: Tensor,
    targets: Masks,
    size: int,
    *,
    most_clicks: int = max(METHODS),
) -> dict[str, Masks]:
    """Method to the masks [N, H, W] it ends with; a box, or clicks of which each corrects the last.

    Args:
        model: In evaluation mode.
        embedding: [N, channels, h, w].
        targets: [N, H, W], none of them empty.
        size: Side of the square that was embedded, pixels.
        most_clicks: Methods with more clicks are left out.
    """
    parts = [
        _answer(model, embedding[i : i + BATCH], targets[i : i + BATCH], size, most_clicks)
        for i in range(0, len(targets), BATCH)
    ]
    return {method: np.concatenate([part[method] for part in parts]) for method in parts[0]}


def _answer(
    model: PromptableSegmenter, embedding: Tensor, targets: Masks, size: int, most_clicks: int
) -> dict[str, Masks]:
    shape, device = targets.shape[1:], embedding.device
    found = {}
    for name, box in (("box", box_of), ("careless box", careless_box)):
        boxes = place_boxes(np.stack([box(target) for target in targets]), shape, size)
        found[name] = _masks(model.decode(embedding, boxes=boxes.to(device)).logits, shape)
    clicks: list[list[Click]] = [[] for _ in targets]
    estimate, previous = np.zeros_like(targets), None
    for count in range(1, most_clicks + 1):
        for own, target, mask in zip(clicks, targets, estimate, strict=True):
            own.append(central_click(target, mask))
        given = np.array(clicks, dtype=np.float32)  # [N, count, 3]
        points = place_points(given[..., :2], shape, size).to(device)
        labels = torch.from_numpy(given[..., 2]).to(device)
        previous = model.decode(embedding, (points, labels), None, previous).logits
        estimate = _masks(previous, shape)
        if count in METHODS:
            found[METHODS[count]] = estimate
    return found


def _masks(logits: Tensor, shape: tuple[int, ...]) -> Masks:
    masks: Masks = (square_to_slices(logits.float(), *shape)[:, 0] > 0).cpu().numpy()
    return masks


Scores = dict[tuple[str, str], list[float]]
"""(method, structure) to the Dice of every slice that shows the structure."""


def score_prompts(
    model: PromptableSegmenter, registry: Registry, pairs: Sequence[Pair], task: Task
) -> Iterator[tuple[Prediction, Scores]]:
    """Prompt and score the volumes that show a structure, one by one.

    A structure is prompted on each slice that shows it, alone and whole.

    Args:
        model: In evaluation mode; any promptable one, SAM too.
        registry: Where the voxels are.
        pairs: Labelled volumes.
        task: The structures are its `labels`.

    Returns:
        The answers to tightest boxes (where two structures were answered, the later one) with
        their mean Dice per slice, and the scores of all methods.

    Raises:
        DataError: DATA-06 for other label values.
    """
    for pair in pairs:
        image, reference = read_image(registry, pair.image), read_mask(registry, pair, task)
        slices = np.flatnonzero(reference.any((1, 2)))
        if not len(slices):
            continue
        embedding = _embed(model, image[slices])
        estimate = np.zeros_like(reference)
        scores: Scores = {}
        for value, name in enumerate(task.labels, start=1):
            targets = reference[slices] == value
            own = np.flatnonzero(targets.any((1, 2)))
            if not len(own):
                continue
            found = answer(model, embedding[torch.from_numpy(own)], targets[own], model.image_size)
            for index, mask in zip(slices[own], found["box"], strict=True):
                estimate[index][mask] = value
            for method, masks in found.items():
                scores[method, name] = [
                    dice(target, mask) for target, mask in zip(targets[own], masks, strict=True)
                ]
        means = {name: float(np.mean(v)) for (method, name), v in scores.items() if method == "box"}
        yield Prediction(pair, image, reference, estimate, means), scores


def check_shown(registry: Registry, pairs: Sequence[Pair], task: Task) -> None:
    """Look for a volume with something to prompt, before anything is trained.

    Raises:
        DataError: DATA-35 when there is none, DATA-06 for other label values.
    """
    if not any(read_mask(registry, pair, task).any() for pair in pairs):
        raise DataError(
            "DATA-35",
            f"task {task.name}: none of the {len(pairs)} test volumes shows {list(task.labels)}.",
            fix="Look at labels and label_where of the task.",
        )


@torch.no_grad()
def _embed(model: PromptableSegmenter, image: npt.NDArray[np.float32]) -> Tensor:
    """Slices [N, H, W] in [0, 1] to embeddings [N, channels, h, w]."""
    device = next(model.parameters()).device
    batches = [image[start : start + BATCH] for start in range(0, len(image), BATCH)]
    return torch.cat(
        [model.embed_image(image_to_square(b, model.image_size).to(device)) for b in batches]
    )
