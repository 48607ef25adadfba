"""Regions of even brightness as structures, so that a decoder follows prompts and not anatomies.

Trained on the few anatomies that have labels, a mask decoder learns these anatomies; SAM learned
from masks of everything in its images. Here regions that need no label stand in, as superpixels do
in Ouyang et al., "Self-Supervision with Superpixels", arXiv 2007.09886: those of Felzenszwalb and
Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 59 (2004), by scikit-image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from downstream.cohort import read_image
from downstream.recipe import Recipe
from downstream.segmentation.examples import LabelledSlices, labelled_slices

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

SCALES = (20.0, 400.0)
"""Drawn evenly on a logarithmic axis: larger ones give larger regions."""
SMOOTHING = (0.2, 0.8)
"""Standard deviation of the Gaussian before, pixels."""
FEWEST = (12, 60)
"""Pixels below which a region is joined to a neighbour."""
NARROWEST = 3
"""Side in pixels of a square that must fit in: slopes of smoothed borders are no structures."""
LARGEST = 0.4
"""Share of a slice; larger regions are no structures."""
DARKEST = 0.1
"""Mean brightness, in [0, 1]; darker regions are air."""
MOST_AT_EDGE = 1.0
"""Pixels at the edge of the slice / square root of the area; more of them: the slice cuts it."""


class Slices(NamedTuple):
    """Slices of one volume."""

    row: VolumeRow
    indices: list[int]


def drawn_slices(rows: Sequence[VolumeRow], count: int, seed: int) -> list[Slices]:
    """At most `count` slices of volumes, all equally likely; in the order of `rows`."""
    ends = np.cumsum([row.num_slices for row in rows], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    own: dict[int, list[int]] = {}
    for position, number in zip(chosen, np.searchsorted(ends, chosen, "right"), strict=True):
        first = ends[number] - rows[number].num_slices
        own.setdefault(int(number), []).append(int(position - first))
    return [Slices(rows[number], indices) for number, indices in own.items()]


def region_slices(
    registry: Registry, drawn: Sequence[Slices], recipe: Recipe, seed: int, *, after: int
) -> list[LabelledSlices]:
    """Slices on the encoder's grid whose classes are the numbers of their regions.

    Args:
        registry: Where the volumes are.
        drawn: As `drawn_slices` gives them.
        recipe: Size of a slice.
        seed: Of scale, smoothing and smallest region, drawn for each slice.
        after: Number after which regions are numbered, that of the last structure with a label.
    """
    rng = np.random.default_rng(seed)
    found = []
    for row, indices in drawn:
        image = read_image(registry, row)[indices]
        everything = np.ones(image.shape, np.uint8)
        for example in labelled_slices(image[None], everything, row.spacing_mm, recipe):
            masks = np.stack([even_regions(own[0].numpy(), rng) for own in example.images])
            numbered = np.where(masks, masks + after, 0)
            found.append(LabelledSlices(example.images, torch.from_numpy(numbered)))
    return found


def even_regions(image: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers from 1 of the regions of a slice, 0 where there is none worth a prompt.

    Args:
        image: [H, W] in [0, 1].
        rng: Draws scale, smoothing and smallest region.

    Returns:
        [H, W].
    """
    from scipy import ndimage
    from skimage.segmentation import felzenszwalb

    pieces = felzenszwalb(
        image,
        scale=float(np.exp(rng.uniform(*np.log(SCALES)))),
        sigma=float(rng.uniform(*SMOOTHING)),
        min_size=int(rng.integers(*FEWEST, endpoint=True)),
    )
    size = np.bincount(pieces.ravel())
    brightness = np.bincount(pieces.ravel(), image.ravel()) / size
    edge = np.concatenate([pieces[0], pieces[-1], pieces[1:-1, 0], pieces[1:-1, -1]])
    at_edge = np.bincount(edge, minlength=len(size))
    low, high = (f(pieces, NARROWEST) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    inner = np.bincount(pieces[low == high], minlength=len(size))
    fit = (
        (size >= FEWEST[0])
        & (size <= LARGEST * image.size)
        & (inner > 0)
        & (brightness >= DARKEST)
        & (at_edge <= MOST_AT_EDGE * np.sqrt(size))
    )
    numbers: npt.NDArray[np.int64] = np.where(fit, np.cumsum(fit), 0)[pieces]
    return numbers
