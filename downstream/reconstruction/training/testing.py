"""Scores of whole volumes of test patients, for trained networks and classical methods alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.models.reconstruction import Reconstructor
from core_mri.physics.classical import Method, reconstruct
from core_mri.physics.preparation import center_crop
from downstream.reconstruction.scores import volume_scores
from downstream.reconstruction.training.batches import fixed_lines, kept
from downstream.reconstruction.training.config import Undersampling
from downstream.reconstruction.training.slices import Slices

Image = npt.NDArray[np.float32]
Way = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
"""Samples ``[C, H, W]``, mask ``[W]`` or ``[H, W]`` and the size to a magnitude ``[h, w]``."""

TEST_SEED = 20_000
"""Coils, phases, noise and masks of test slices are the same for every method, seed and run."""
METRICS = {"NMSE": "1", "PSNR": "dB", "SSIM": "1"}
"""Names and units."""


@dataclass(frozen=True)
class Tested:
    """One volume by one method."""

    patient: str
    volume: str
    scores: dict[str, float]
    """NMSE, PSNR, SSIM over the volume."""
    reference: Image
    """The middle slice ``[h, w]``."""
    image: Image
    """What the method made of it."""


def by_network(network: Reconstructor) -> Way:
    """A network as a method."""
    device = next(network.parameters()).device

    def method(kspace: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
        return network.reconstruct(kspace[None].to(device), mask.to(device), size=size)[0].cpu()

    return method


def by_classical(name: Method, weight: float | None = None) -> Way:
    """A classical method as one; `weight` of its penalty, from the noise by default."""

    def method(kspace: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
        try:
            image = reconstruct(kspace, mask, name, weight=weight).image
        except ValueError as error:
            raise DataError(
                "DATA-21", f"{error}.", fix="Use a mask with a larger center."
            ) from None
        return center_crop(image.abs(), size)

    return method


def scored_volumes(
    method: Way, slices: Slices, settings: Undersampling, choice: int, every: int = 1
) -> Iterator[Tested]:
    """Every volume, reconstructed from undersampled samples and scored as fastMRI scores.

    Args:
        method: What reconstructs a slice.
        slices: With references.
        settings: Undersampling of fully sampled data.
        choice: Which of its accelerations.
        every: Take every so manieth slice of the set only.

    Raises:
        DataError: DATA-42 for a slice without reference.
    """
    positions = range(0, len(slices), every)
    for volume, own in itertools.groupby(positions, key=lambda p: slices.volumes[p]):
        inside = list(own)
        pairs = [_pair(method, slices, position, settings, choice) for position in inside]
        references, images = (np.stack(part) for part in zip(*pairs, strict=True))
        if not references.any():
            continue
        middle = len(pairs) // 2
        yield Tested(
            slices.patients[inside[0]],
            volume,
            volume_scores(references, images),
            references[middle],
            images[middle],
        )


@torch.inference_mode()
def _pair(
    method: Way, slices: Slices, position: int, settings: Undersampling, choice: int
) -> tuple[Image, Image]:
    rng = np.random.default_rng((TEST_SEED, position))
    own = slices.read(position, rng)
    if own.reference is None:
        raise DataError(
            "DATA-42",
            f"{slices.volumes[position]}: no fully sampled reference, so nothing can be scored.",
            fix="Leave this file out of `test`.",
        )
    mask = own.mask
    if mask is None:
        mask = fixed_lines(settings, choice, own.kspace.shape[-1], (TEST_SEED, position, choice))
    data = kept(own.kspace, mask)
    image = method(data, mask, own.size) if bool(data.any()) else torch.zeros(own.size)
    return center_crop(own.reference, own.size).numpy(), image.float().numpy()
