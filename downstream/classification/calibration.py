"""A temperature that makes stated probabilities believable, chosen on validation patients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LIMITS = (0.05, 20.0)
"""Of a temperature; few validation examples, all of them right, would send it to 0."""
_FLOOR = 1e-6
"""Of a probability: a nearest neighbour may call a class impossible."""


def fit_temperature(probabilities: Tensor, classes: Tensor) -> float:
    """The T that minimises the mean negative log-likelihood of ``softmax(log p / T)``.

    It is convex in 1 / T. Source: Guo et al., On calibration of modern neural networks, ICML 2017.

    Args:
        probabilities: [N, C] of validation examples.
        classes: [N] int64.

    Returns:
        T within `LIMITS`; 1.0 without any example.
    """
    from scipy.optimize import minimize_scalar

    if not len(classes):
        return 1.0
    logits = probabilities.double().clamp_min(_FLOOR).log()

    def loss(log_t: float) -> float:
        scaled = torch.log_softmax(logits / math.exp(log_t), 1)
        return -float(scaled.gather(1, classes[:, None]).mean())

    low, high = (math.log(limit) for limit in LIMITS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def with_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """``softmax(log p / T)`` of [N, C]; T = 1 changes nothing."""
    if temperature == 1.0:
        return probabilities
    logits = probabilities.double().clamp_min(_FLOOR).log()
    return torch.softmax(logits / temperature, 1).float()
