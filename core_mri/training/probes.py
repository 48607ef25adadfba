"""Frozen features judged by the simplest classifiers: k nearest neighbours and a linear map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core_mri.errors import DataError


def knn_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    *,
    k: int = 10,
    temperature: float = 0.07,
) -> Tensor:
    """Class scores by weighted k nearest neighbours of cosine similarity.

    ``score(c) = sum over the k nearest n with y_n = c of exp(cos(x, x_n) / temperature)``
    (Wu et al., arXiv 1805.01978; the probe of DINO, arXiv 2104.14294).

    Args:
        train_x: [N, D] features.
        train_y: [N] class indices, int64, 0-based.
        test_x: [M, D] features.
        k: Neighbours, at most N are used.
        temperature: Sharpness of the weights.

    Returns:
        [M, C] scores that sum to one over classes; ``argmax(1)`` predicts.

    Raises:
        DataError: DATA-09 without training rows, DATA-04 for features that are not finite.
    """
    _check(train_x, train_y, test_x)
    num_classes = int(train_y.max()) + 1
    similarity = (
        functional.normalize(test_x.float(), dim=1)
        @ functional.normalize(train_x.float(), dim=1).mT
    )
    nearest, index = similarity.topk(min(k, len(train_x)), dim=1)  # [M, k]
    weights = torch.softmax(nearest / temperature, 1)
    scores = torch.zeros(len(test_x), num_classes, device=test_x.device)
    return scores.scatter_add_(1, train_y[index], weights)


@dataclass(frozen=True)
class LinearMap:
    """A linear classifier of standardised features, float64."""

    mean: Tensor
    """[D], subtracted from features."""
    std: Tensor
    """[D], divides them."""
    weight: Tensor
    """[C, D]."""
    bias: Tensor
    """[C]."""

    def probabilities(self, features: Tensor) -> Tensor:
        """[M, C] float32 of features [M, D]."""
        scaled = (features.double() - self.mean) / self.std
        return torch.softmax(scaled @ self.weight.mT + self.bias, 1).float()


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    *,
    l2: float = 1e-2,
    iterations: int = 200,
) -> Tensor:
    """Class probabilities [M, C] of `test_x` [M, D] by `fit_linear_map` of the other arguments.

    Raises:
        DataError: DATA-09 without training rows, DATA-04 for features that are not finite.
    """
    _check(train_x, train_y, test_x)
    return fit_linear_map(train_x, train_y, l2=l2, iterations=iterations).probabilities(test_x)


def fit_linear_map(
    train_x: Tensor, train_y: Tensor, *, l2: float = 1e-2, iterations: int = 200
) -> LinearMap:
    """Multinomial logistic regression on standardised features.

    Minimises ``mean cross-entropy + l2 / 2 * |W|^2`` in float64 by L-BFGS from zero, so the result
    is a function of the data alone.

    Args:
        train_x: [N, D] features; mean and standard deviation are taken from them.
        train_y: [N] class indices, int64, 0-based.
        l2: Weight of the penalty; the bias is not penalised.
        iterations: At most this many L-BFGS steps.

    Raises:
        DataError: DATA-09 without training rows, DATA-04 for features that are not finite.
    """
    _check(train_x, train_y, train_x)
    mean = train_x.double().mean(0)
    std = train_x.double().std(0, correction=0).clamp_min(1e-6)
    inputs = (train_x.double() - mean) / std
    num_classes = int(train_y.max()) + 1
    weight = torch.zeros(num_classes, inputs.shape[1], dtype=torch.float64, device=inputs.device)
    bias = torch.zeros(num_classes, dtype=torch.float64, device=inputs.device)
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.mT + bias, train_y)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearMap(mean, std, weight.detach(), bias.detach())


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor) -> None:
    if len(train_x) == 0 or len(train_x) != len(train_y):
        raise DataError(
            "DATA-09",
            f"a probe needs one label per training row and at least one row, "
            f"got {len(train_x)} rows and {len(train_y)} labels.",
        )
    if not (torch.isfinite(train_x).all() and torch.isfinite(test_x).all()):
        raise DataError("DATA-04", "features of a probe must be finite.")
