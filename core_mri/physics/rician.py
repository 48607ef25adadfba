"""Rician noise: what complex noise of the receiver becomes in a magnitude picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rician_noise(images: Tensor, sigma: Tensor, seeds: Sequence[int]) -> Tensor:
    """``|x + sigma (n1 + i n2)|``, n1 and n2 normal (Gudbjartsson and Patz, MRM 34, 1995, 910-914).

    In air its mean is ``sigma sqrt(pi / 2)``; the mean square is ``x^2 + 2 sigma^2`` everywhere.

    Args:
        images: [N, S, S], not negative.
        sigma: [N, 1, 1], not negative.
        seeds: [N].
    """
    real, imaginary = normal_pairs(images, seeds).unbind(1)
    return torch.hypot(images + sigma * real, sigma * imaginary)


def normal_pairs(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """[N, 2, S, S] standard normal numbers, those of a view by its own seed, on its device."""
    pairs = images.new_empty(len(images), 2, *images.shape[1:])
    generator = torch.Generator(device=images.device)
    for pair, seed in zip(pairs, seeds, strict=True):
        pair.normal_(generator=generator.manual_seed(seed))
    return pairs
