"""Cross-entropy over prototypes, fused with the layer that makes the logits.

Shapes: N student rows (tokens), M teacher rows, K prototypes, E width of the bottleneck.

With codes x_i and unit prototypes W the loss is

    sum_i c_i sum_m a_im CE(t_m, softmax(W x_i / T)).

One pass over chunks of prototypes gives the normalizer of the softmax, a second one the loss and
every gradient, so that no array of N x K is kept, and the gradients are the whole ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.linear import product
from pretrain.targets import Targets, chunks

KEPT_LOGITS = 2**26
"""Logits that may wait for the second pass; more of them are computed twice."""
_EPS = 1e-12


class Spread(NamedTuple):
    """Which student rows are compared with which teacher rows: a_im, without the matrix."""

    spread: Callable[[Tensor], Tensor]
    """Takes targets [M, C] to the sums ``sum_m a_im t_m`` [N, C]."""
    mass: Tensor
    """``sum_m a_im``, float32 [N]."""
    weights: Tensor
    """c_i, float32 [N]."""


class TargetSums(NamedTuple):
    """What the pass over the targets tells of them, for `pretrain.health`; float32, no gradient."""

    entropy: Tensor
    """[M], entropy of each row, nats."""
    total: Tensor
    """[K], sum of the rows."""
    largest: Tensor
    """[M], the most likely prototype of each row."""

    @classmethod
    def of(cls, probs: Tensor) -> TargetSums:
        """Those of dense targets [M, K]."""
        entropy = -torch.special.xlogy(probs, probs).sum(-1)
        return cls(entropy, probs.sum(0), probs.argmax(-1))


def cross_views(num_images: int, num_views: int, device: torch.device) -> Spread:
    """Class tokens against those of the teacher's two views, but not of the same view (DINO).

    Mean over images and over pairs of different views (arXiv 2104.14294). Rows are view by view,
    the two global views first.

    Args:
        num_images: B.
        num_views: V >= 2, of the student.
        device: Of the targets.
    """

    def spread(targets: Tensor) -> Tensor:
        views = targets.unflatten(0, (2, num_images))
        others = views.sum(0, keepdim=True).expand(num_views - 2, -1, -1)
        return torch.cat([views.flip(0), others]).flatten(0, 1)

    mass = torch.ones(num_views, num_images, device=device)
    mass[2:] = 2
    pairs = 2 * num_views - 2
    weights = torch.full((num_views * num_images,), 1 / (pairs * num_images), device=device)
    return Spread(spread, mass.flatten(), weights)


def same_rows(weights: Tensor) -> Spread:
    """Each student row against the teacher's row of the same place, with weights [N]."""
    return Spread(lambda targets: targets, torch.ones_like(weights), weights)


def prototype_loss(
    codes: Tensor, prototypes: Tensor, targets: Targets, how: Spread, temperature: float
) -> tuple[Tensor, TargetSums]:
    """Cross-entropy of a student's codes with targets, and its exact gradients.

    Args:
        codes: [N, E], unit rows. N may be 0.
        prototypes: [K, E], of any length: they are normalized here.
        targets: Of M teacher rows.
        how: Which rows meet which.
        temperature: T of the student.

    Returns:
        The loss, a float32 scalar with gradients for `codes` and `prototypes` even when N is 0, and
        sums over the targets.
    """
    loss, *sums = _PrototypeLoss.apply(codes, prototypes, targets, how, temperature)
    return loss, TargetSums(*sums)


def prototype_logits(codes: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines [N, K] of codes [N, E] (unit rows) and prototypes [K, E], without gradient.

    They are of the type in which matrices are multiplied.
    """
    with torch.no_grad():
        dtype = _compute_dtype(codes)
        return product(codes.to(dtype), functional.normalize(prototypes, dim=-1).to(dtype))


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        codes: Tensor,
        prototypes: Tensor,
        targets: Targets,
        how: Spread,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(codes)
        with torch.autocast(codes.device.type, enabled=False):
            loss, grads, sums = _pass(codes.to(dtype), prototypes, targets, how, temperature)
        ctx.save_for_backward(*grads)
        ctx.types = codes.dtype, prototypes.dtype
        ctx.mark_non_differentiable(*sums)
        return loss, *sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_sums: Tensor) -> tuple[Tensor | None, ...]:
        for_codes, for_prototypes = ctx.saved_tensors
        codes_type, prototypes_type = ctx.types
        return (
            (grad * for_codes).to(codes_type),
            (grad * for_prototypes).to(prototypes_type),
            None,
            None,
            None,
        )


def _pass(
    codes: Tensor, prototypes: Tensor, targets: Targets, how: Spread, temperature: float
) -> tuple[Tensor, tuple[Tensor, Tensor], TargetSums]:
    """The loss, its gradients [N, E] and [K, E] in float32, and the sums."""
    parts = list(chunks(len(prototypes)))
    kept: dict[int, Tensor] = {}
    normalizer = codes.new_full((len(codes),), -torch.inf, dtype=torch.float32)
    for number, chunk in enumerate(parts):
        unit = functional.normalize(prototypes[chunk], dim=-1)
        scores = _scores(codes, unit, temperature)
        normalizer = torch.logaddexp(normalizer, scores.logsumexp(1))
        if len(codes) * chunk.stop <= KEPT_LOGITS:
            kept[number] = scores
    scale = how.weights * how.mass
    loss = (scale * normalizer).sum()
    for_codes = torch.zeros_like(codes, dtype=torch.float32)
    for_prototypes = torch.empty_like(prototypes, dtype=torch.float32)
    sums = _Sums(targets)
    for number, chunk in enumerate(parts):
        length = torch.linalg.vector_norm(prototypes[chunk], dim=-1, keepdim=True)
        unit = prototypes[chunk] / length.clamp_min(_EPS)
        scores = kept.pop(number) if number in kept else _scores(codes, unit, temperature)
        wanted = how.spread(sums.add(chunk)).mul_(how.weights[:, None])
        loss = loss - (wanted * scores).sum()
        # d loss / d score = c (a softmax(scores) - sum_m a_m t_m)
        grad = scores.sub_(normalizer[:, None]).exp_().mul_(scale[:, None]).sub_(wanted)
        grad = grad.div_(temperature).to(codes.dtype)
        for_codes += product(grad, unit.to(codes.dtype).mT)
        turned = product(grad.mT, codes.mT).float()
        # Only the part across a prototype turns it: its length does not count.
        along = (turned * unit).sum(1, keepdim=True)
        for_prototypes[chunk] = turned.sub_(along * unit).div_(length.clamp_min(_EPS))
    return loss, (for_codes, for_prototypes), sums.result()


def _scores(codes: Tensor, unit: Tensor, temperature: float) -> Tensor:
    """Float32 ``codes @ unit.T / T`` [N, C]."""
    return product(codes, unit.to(codes.dtype)).float().div_(temperature)


class _Sums:
    """Gathers `TargetSums` while the targets pass by."""

    def __init__(self, targets: Targets) -> None:
        num_rows, num_prototypes = targets.logits.shape
        self.targets = targets
        self.entropy = targets.rows.new_zeros(num_rows)
        self.total = targets.rows.new_zeros(num_prototypes)
        self.highest = targets.rows.new_full((num_rows,), -torch.inf)
        self.largest = torch.zeros(num_rows, dtype=torch.int64, device=targets.rows.device)

    def add(self, chunk: slice) -> Tensor:
        """Targets [M, C] of the chunk, counted."""
        logs = self.targets.logs(chunk)
        probs = logs.exp()
        highest, place = logs.max(1)
        self.largest = torch.where(highest > self.highest, place + chunk.start, self.largest)
        self.highest = torch.maximum(highest, self.highest)
        self.entropy -= logs.mul_(probs).sum(1)
        self.total[chunk] = probs.sum(0)
        return probs

    def result(self) -> TargetSums:
        return TargetSums(self.entropy, self.total, self.largest)


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
