"""Without a reference: some of the measured samples are kept back and must be predicted (SSDU).

Omega, what was measured, is divided into Theta, which the network gets, and Lambda, by which it is
judged:

    loss = ||u - v||_2 / (||u||_2 + eps) + ||u - v||_1 / (||u||_1 + eps)

u samples in Lambda, v those of the network's image there. A matching term between two images (as in
self-distillation) is no substitute: an output that ignores its input satisfies it.

Sources: Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks
without fully sampled reference data, MRM 84 (2020); several splits of a slice: Yaman et al.,
Multi-mask self-supervised learning for physics-guided neural networks, NMR Biomed 35 (2022).
Written from the papers. Opt-in: see "Legal note" in `downstream/README.md`.

Shape letters: ``S`` slices, ``C`` coils, ``H`` readout, ``W`` phase encoding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core_mri.models.unrolled import Encoded

Selection = Literal["uniform", "gaussian", "lines"]

EPS = 1e-6
"""Samples are over the largest value of their slice, so norms of a slice with signal are near 1."""
CENTER = 4
"""Side of the box, or number of lines, around the center that always stays in Theta."""
SPREAD = 4.0
"""gaussian: sides of k-space over the standard deviation."""


def split(
    mask: Tensor, height: int, *, share: float, selection: Selection, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Divide what was measured.

    Args:
        mask: Omega, bool ``[H or 1, W]``.
        height: H.
        share: Points of Lambda over those of Omega (0.4 in the papers).
        selection: ``uniform``, or ``gaussian``, denser around the center; both pick single points.
            ``lines`` picks whole lines.
        rng: Draws them.

    Returns:
        Theta and Lambda, bool ``[H, W]``, together Omega.
    """
    omega = mask.expand(height, -1).cpu().numpy()
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in omega.shape)
    kept = (rows[:, None] < CENTER / 2) & (columns < CENTER / 2)
    score = rng.gumbel(size=omega.shape)  # the largest are a draw without replacement
    if selection == "gaussian":
        down, across = SPREAD * rows / omega.shape[0], SPREAD * columns / omega.shape[1]
        score -= (down[:, None] ** 2 + across**2) / 2
    if selection == "lines":
        kept = np.broadcast_to(columns < CENTER / 2, omega.shape)
        score = np.broadcast_to(score[0], omega.shape)
    free = omega & ~kept
    count = min(round(share * int(omega.sum())), int(free.sum()))
    if selection == "lines":
        count = round(count / height) * height
    order = np.argsort(np.where(free, -score, np.inf).T, axis=None, kind="stable")[:count]
    chosen = np.zeros(omega.T.shape, dtype=bool)
    chosen.flat[order] = True
    held = torch.from_numpy(np.ascontiguousarray(chosen.T))
    return torch.from_numpy(omega) & ~held, held


def holdout_loss(encoded: Encoded, image: Tensor, held: Tensor) -> Tensor:
    """The loss of each slice, ``[S]``; finite for blank ones.

    Args:
        encoded: All that was measured.
        image: What the network made of Theta, complex ``[S, H, W]``.
        held: Lambda, bool ``[S, H, W]``.
    """
    wanted = encoded.kspace * held.unsqueeze(-3)
    difference = torch.view_as_real(encoded.sense(held).forward(image) - wanted).flatten(1)
    wanted = torch.view_as_real(wanted).flatten(1)
    return _ratio(difference, wanted, 2) + _ratio(difference, wanted, 1)


def _ratio(difference: Tensor, wanted: Tensor, order: int) -> Tensor:
    """``||d||_p / (||w||_p + eps)`` of real and imaginary parts, with a finite slope at 0."""
    if order == 1:
        return difference.abs().sum(1) / (wanted.abs().sum(1) + EPS)
    return (difference.square().sum(1) + EPS**2).sqrt() / (wanted.square().sum(1).sqrt() + EPS)
