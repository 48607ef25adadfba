"""What the teacher asks for: distributions over prototypes, kept as logits and two vectors.

Shapes: M rows (tokens) of this worker, K prototypes. In a distributed run the targets equal those
of one process on the concatenated batch. All sums are float32, whatever autocast says; the logits
stay as they came and are read in columns, so that no other array of M x K is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.losses import distributed, reduce_sum

CHUNK = 4096
"""Prototypes that are handled at once."""


class Targets(NamedTuple):
    """Rows of probabilities ``t_ik = exp(logits_ik / T - rows_i - columns_k)``."""

    logits: Tensor
    """[M, K]."""
    temperature: float
    """T > 0."""
    rows: Tensor
    """Float32 [M]."""
    columns: Tensor
    """Float32 [K]."""

    def logs(self, chunk: slice) -> Tensor:
        """Float32 log probabilities [M, size] of a chunk of prototypes."""
        scores = self.logits[:, chunk].float() / self.temperature
        return scores.sub_(self.columns[chunk]).sub_(self.rows[:, None])

    def take(self, rows: Tensor) -> Targets:
        """Some of the rows."""
        return self._replace(
            logits=self.logits.index_select(0, rows), rows=self.rows.index_select(0, rows)
        )

    def dense(self) -> Tensor:
        """All probabilities, float32 [M, K]; rows sum to one."""
        return self.logs(slice(None)).exp()


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Targets:
    """Targets in which every prototype gets the same share of the rows (SwAV, arXiv 2006.09882).

    Alternately normalizes columns and rows of ``exp(logits / T)``, in the log domain: the usual
    form overflows once a logit exceeds 88.7 T (3.5 at T = 0.04), this one has no such limit.

    Args:
        logits: [M, K] of this worker; the columns run over the rows of all workers. M may be 0.
        temperature: T > 0.
        iterations: Of column and row normalization.
    """
    targets = Targets(
        logits,
        temperature,
        torch.zeros(len(logits), device=logits.device),
        torch.zeros(logits.shape[1], device=logits.device),
    )
    for _ in range(iterations):
        for chunk in chunks(logits.shape[1]):
            scores = logits[:, chunk].float() / temperature
            targets.columns[chunk] = scores.sub_(targets.rows[:, None]).logsumexp(0)
        _log_sum_workers(targets.columns)
        _normalize_rows(targets)
    return targets


@torch.no_grad()
def softmax_targets(logits: Tensor, temperature: float) -> Targets:
    """``softmax(logits / T)`` of logits [M, K], with nothing against a collapse."""
    targets = Targets(
        logits,
        temperature,
        torch.zeros(len(logits), device=logits.device),
        torch.zeros(logits.shape[1], device=logits.device),
    )
    _normalize_rows(targets)
    return targets


class SoftmaxCentering(nn.Module):
    """Targets ``softmax((logits - c) / T)`` with a moving center c (DINO, arXiv 2104.14294).

    Args:
        num_prototypes: K.
        momentum: ``c <- m c + (1 - m) mean of the rows of all workers``, after making targets.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Targets:
        """Targets of logits [M, K]; M may be 0."""
        targets = Targets(
            logits,
            temperature,
            torch.zeros(len(logits), device=logits.device),
            self.center / temperature,
        )
        _normalize_rows(targets)
        sums = logits.sum(0, dtype=torch.float32)
        total = reduce_sum(torch.cat([sums, sums.new_tensor([len(logits)])]))
        moved = self.center.lerp(total[:-1] / total[-1].clamp_min(1), 1 - self.momentum)
        # No rows, or a diverged teacher, leave the center as it is.
        good = (total[-1] > 0) & total.isfinite().all()
        self.center.copy_(torch.where(good, moved, self.center))
        return targets


def chunks(num_prototypes: int) -> Iterator[slice]:
    """Slices of the prototypes that are handled at once."""
    for begin in range(0, num_prototypes, CHUNK):
        yield slice(begin, min(begin + CHUNK, num_prototypes))


def _normalize_rows(targets: Targets) -> None:
    """``rows <- log sum_k exp(logits / T - columns)``, in place."""
    total = torch.full_like(targets.rows, -math.inf)
    for chunk in chunks(targets.logits.shape[1]):
        scores = targets.logits[:, chunk].float() / targets.temperature
        total = torch.logaddexp(total, scores.sub_(targets.columns[chunk]).logsumexp(1))
    targets.rows.copy_(total)


def _log_sum_workers(values: Tensor) -> None:
    """``log sum exp`` over all workers, in place."""
    if not distributed():
        return
    highest = values.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    values.sub_(highest).exp_()
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    values.log_().add_(highest)
