"""A bias field: how receive coils shade a picture, bright near them and dark far away."""

from __future__ import annotations

import torch
from torch import Tensor

_ORDER = 3
_TERMS = [(i, j) for i in range(_ORDER + 1) for j in range(_ORDER + 1) if 0 < i + j <= _ORDER]
NUM_COEFFICIENTS = len(_TERMS)
"""Of a polynomial of order 3 in two variables, without the constant: 9."""


def bias_field(coefficients: Tensor, ratio: Tensor, size: int) -> Tensor:
    """``b = exp(g p) / mean(exp(g p))`` with ``p = sum over 0 < i + j <= 3 of c_ij y^i x^j``.

    y and x run from -1 to 1, and g makes ``max b / min b`` the ratio asked for. An exponential of a
    polynomial as Van Leemput et al. fit it (IEEE TMI 18, 1999, 885-896).

    Args:
        coefficients: c, [N, NUM_COEFFICIENTS].
        ratio: [N, 1, 1], at least 1.
        size: S.

    Returns:
        [N, S, S], positive, of mean 1.
    """
    place = torch.linspace(-1, 1, size, device=coefficients.device)
    powers = torch.stack([place**i for i in range(_ORDER + 1)], 1)  # [S, 4]
    table = coefficients.new_zeros(len(coefficients), _ORDER + 1, _ORDER + 1)
    rows, columns = zip(*_TERMS, strict=True)
    table[:, rows, columns] = coefficients
    polynomial = powers @ table @ powers.mT
    low, high = polynomial.amin((-2, -1), keepdim=True), polynomial.amax((-2, -1), keepdim=True)
    field = ((polynomial - low) * (ratio.log() / (high - low))).exp_()
    return field / field.mean((-2, -1), keepdim=True)


def apply_bias(images: Tensor, field: Tensor) -> Tensor:
    """``b x / max(1, max(b x))``: where the field lifts a picture above 1 it is windowed anew.

    Args:
        images: [N, S, S] in [0, 1].
        field: b, [N, S, S].
    """
    shaded = images * field
    return shaded / shaded.amax((-2, -1), keepdim=True).clamp_min(1)
