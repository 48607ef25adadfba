"""k-means of patch features, and the cluster of every pixel.

Features have length 1 here, so distances are those of directions. Shapes: S slices, h and w the
grid of patches, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from core_mri.errors import DataError
from core_mri.models.encoder import Encoder
from core_mri.slice_grid import image_to_square, square_to_classes

if TYPE_CHECKING:
    from numpy.random import Generator

BATCH = 16
"""Slices encoded, or brought to pixels, at once."""
MAX_PATCHES = 50_000
"""k-means sees at most so many patches, drawn by seed."""


@torch.no_grad()
def patch_features(encoder: Encoder, image: npt.NDArray[np.float32], image_size: int) -> Tensor:
    """Patch features [S, h, w, D] of length 1, float32 on the CPU, of slices in [0, 1]."""
    device = next(encoder.parameters()).device
    found = []
    for start in range(0, len(image), BATCH):
        images = image_to_square(image[start : start + BATCH], image_size)
        found.append(functional.normalize(encoder(images.to(device)).patches, dim=-1).cpu())
    return torch.cat(found)


def fit(features: Sequence[Tensor], num_clusters: int, seed: int) -> Tensor:
    """Centers [K, D] of mini-batch k-means (Sculley, WWW 2010; scikit-learn's), best of 3 starts.

    Args:
        features: Tensors [S, h, w, D].
        num_clusters: K.
        seed: Of the patches that are drawn and of the starts.

    Raises:
        DataError: DATA-09 when there are fewer patches than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    table = _sample(features, rng)
    if len(table) < num_clusters:
        raise DataError(
            "DATA-09",
            f"{len(table)} patches do not make {num_clusters} clusters.",
            fix="Use fewer clusters, a larger recipe.image_size or more scans.",
        )
    fitted = MiniBatchKMeans(
        num_clusters, n_init=3, batch_size=2048, random_state=int(rng.integers(2**31))
    ).fit(table)
    return torch.from_numpy(fitted.cluster_centers_.astype(np.float32))


def _sample(features: Sequence[Tensor], rng: Generator) -> npt.NDArray[np.float32]:
    """At most MAX_PATCHES rows [N, D], of all tensors alike."""
    sizes = [tensor[..., 0].numel() for tensor in features]
    total = sum(sizes)
    kept = np.sort(rng.permutation(total)[:MAX_PATCHES])
    rows, start = [], 0
    for tensor, size in zip(features, sizes, strict=True):
        own = kept[(kept >= start) & (kept < start + size)] - start
        rows.append(tensor.flatten(0, -2)[torch.from_numpy(own)])
        start += size
    table: npt.NDArray[np.float32] = torch.cat(rows).numpy()
    return table


def assign(features: Tensor, centers: Tensor, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """The nearest center of every pixel [S, rows, columns], for features interpolated to pixels.

    ``|f - c|^2 = |f|^2 - (2 f.c - |c|^2)``: what is in brackets decides and is linear in f, so
    interpolating it is interpolating the features, at K instead of D numbers a pixel.
    """
    closeness = 2 * features @ centers.T - centers.square().sum(1)  # [S, h, w, K]
    return np.concatenate(
        [
            square_to_classes(part.permute(0, 3, 1, 2), rows, columns)
            for part in torch.split(closeness, BATCH)
        ]
    )
