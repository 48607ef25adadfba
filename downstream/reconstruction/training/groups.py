"""A batch before it goes to the device: air left out, slices of one shape together, coils found.

All of it is done on the CPU and may be done ahead of time. Slices of air hold noise alone, and a
loss relative to their size would make the net fit it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.models.unrolled import Encoded, encode, stacked
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.masks import center_lines
from core_mri.physics.noise import noise_level
from downstream.reconstruction.training.batches import kept
from downstream.reconstruction.training.config import Loss
from downstream.reconstruction.training.losses.holdout import split
from downstream.reconstruction.training.slices import Slice

AIR = 10.0
"""Slices whose largest value is less than this many standard deviations of the noise are air."""


@dataclass(frozen=True)
class Sample:
    """A slice, what is left of it, and by what it is judged."""

    slice: Slice
    mask: Tensor
    """Bool ``[W]`` or ``[H, W]``."""
    labelled: bool
    """Whether its reference is used; else held-out samples are."""
    rng: np.random.Generator
    allowed: Tensor | None = None
    """Bool ``[H, W]``, points of the mask that training may use; None for all."""


@dataclass(frozen=True)
class Group:
    """Samples of one shape."""

    samples: tuple[Sample, ...]
    masks: tuple[Tensor, ...]
    """Of each sample."""
    num_low: tuple[int, ...]
    """Lines of the center of each."""
    kspace: Tensor
    """``[S, C, H, W]``: all that is known for an unrolled network, else what its mask leaves."""
    peaks: Tensor
    """Of the reference volumes, ``[S]``."""
    references: Tensor | None
    """``[S, h, w]``, of labelled samples."""
    encoded: Encoded | None
    """For unrolled networks."""
    splits: tuple[tuple[Tensor, Tensor], ...]
    """Theta and Lambda, bool ``[S, H, W]``, one pair a split, of unlabelled samples."""

    @property
    def labelled(self) -> bool:
        """Whether references are used."""
        return self.references is not None

    @property
    def size(self) -> tuple[int, int]:
        """Of the image that is scored."""
        return self.samples[0].slice.size

    def each(self, function: Callable[[Tensor], Tensor]) -> Group:
        """All tensors changed alike; `samples` stay on the CPU."""
        return replace(
            self,
            masks=tuple(function(mask) for mask in self.masks),
            kspace=function(self.kspace),
            peaks=function(self.peaks),
            references=None if self.references is None else function(self.references),
            encoded=None if self.encoded is None else self.encoded.each(function),
            splits=tuple((function(theta), function(held)) for theta, held in self.splits),
        )


def grouped(samples: Sequence[Sample], loss: Loss, *, encodes: bool) -> list[Group]:
    """Samples that show something, those of one shape together.

    Args:
        samples: Of one batch.
        loss: How unlabelled ones are split.
        encodes: For an unrolled network.

    Raises:
        DataError: DATA-42 for a sample that should be labelled and has no reference; DATA-21
            without the center that coil maps need.
    """
    found: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.labelled and sample.slice.reference is None:
            raise DataError(
                "DATA-42",
                "a training slice has no fully sampled reference, which supervision needs.",
                fix="Set supervision: self-supervised, or leave undersampled files out.",
            )
        shape = (*sample.slice.kspace.shape, *sample.slice.size, sample.labelled)
        if not is_air(kept(sample.slice.kspace, sample.mask), sample.mask):
            found[shape].append(sample)
    return [_group(group, loss, encodes) for group in found.values()]


def _group(samples: Sequence[Sample], loss: Loss, encodes: bool) -> Group:
    encoded = encoded_samples(samples) if encodes else None
    labelled = samples[0].labelled
    masks = tuple(sample.mask for sample in samples)
    known = [s.slice.kspace if encodes else kept(s.slice.kspace, s.mask) for s in samples]
    references = [s.slice.reference for s in samples if s.slice.reference is not None]
    return Group(
        samples=tuple(samples),
        masks=masks,
        num_low=tuple(center_lines(m if m.ndim == 1 else m.all(0)) for m in masks),
        kspace=torch.stack(known),
        peaks=torch.tensor([sample.slice.peak for sample in samples]),
        references=torch.stack(references) if labelled else None,
        encoded=encoded,
        splits=()
        if labelled or encoded is None
        else tuple(_split(samples, encoded, loss) for _ in range(loss.splits)),
    )


def _split(samples: Sequence[Sample], encoded: Encoded, loss: Loss) -> tuple[Tensor, Tensor]:
    height = encoded.kspace.shape[-2]
    parts = [
        split(
            own if sample.allowed is None else own & sample.allowed,
            height,
            share=loss.holdout_share,
            selection=loss.holdout_selection,
            rng=sample.rng,
        )
        for own, sample in zip(encoded.mask, samples, strict=True)
    ]
    theta, held = (torch.stack(part) for part in zip(*parts, strict=True))
    return theta, held


def encoded_samples(samples: Sequence[Sample]) -> Encoded:
    """One batch for an unrolled network, of samples of one shape."""
    return stacked([encode(kept(s.slice.kspace, s.mask), s.mask) for s in samples])


def is_air(kspace: Tensor, mask: Tensor) -> bool:
    """Whether a slice ``[C, H, W]`` shows nothing above the noise."""
    largest = root_sum_of_squares(ifft2c(kspace), 0).max()
    points = mask if mask.ndim > 1 else mask[None]
    density = points.float().mean().sqrt()  # undersampling lowers the noise of the image
    noise = noise_level(kspace, points).squeeze() * density * kspace.shape[0] ** 0.5
    return bool(largest <= AIR * noise) or not bool(largest > 0)
