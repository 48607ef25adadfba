"""Losses of self-distillation and what makes the teacher's targets.

Shapes: B images, V views, N rows (tokens), K prototypes, D width. Everything is computed in
float32, whatever autocast says. In a distributed run the targets equal those of one process on the
concatenated batch; losses are means over equal shares, so averaging gradients gives the same step.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

KOLEO_EPS = 1e-8
KOLEO_FLOOR = 1e-4
"""Distance of unit vectors below which a neighbor counts as a duplicate and pulls no gradient: in
float32 the direction between such vectors is rounding, and its gradient would swamp every other."""


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between class tokens of different views (DINO, arXiv 2104.14294).

    ``-sum_k t_ik log softmax(s_j / T)_k``, mean over images and over pairs (i, j) of a teacher view
    and a student view, without the pairs i == j that show the same view.

    Args:
        student_logits: [Vs, B, K]; the first Vt views are the teacher's.
        teacher_probs: [Vt, B, K], rows sum to one.
        temperature: T of the student.

    Returns:
        Scalar.

    Raises:
        ValueError: When no pair of different views is left.
    """
    num_teacher, num_images = teacher_probs.shape[:2]
    num_pairs = num_teacher * len(student_logits) - min(num_teacher, len(student_logits))
    if num_pairs == 0:
        raise ValueError("dino_loss needs at least two views.")
    with _float32(student_logits):
        log_student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
        # sum over teacher views but the same one: one product for a student view instead of Vt.
        total = teacher_probs.sum(0)
        loss = torch.zeros((), device=student_logits.device)
        for view, log_view in enumerate(log_student):
            target = total - teacher_probs[view] if view < num_teacher else total
            loss = loss - (target * log_view).sum()
        return loss / (num_pairs * num_images)


def ibot_loss(
    student_logits: Tensor, teacher_probs: Tensor, masks: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy on masked patches (iBOT, arXiv 2111.07832), weighted as in DINOv2.

    Mean over the masked tokens of each image, then mean over all images; images without a mask
    count as zero, so the value does not depend on how images are spread over workers.

    Args:
        student_logits: [N, K], one row for each True of `masks`, in its order. N may be 0.
        teacher_probs: [N, K], rows sum to one.
        masks: Bool [B, h, w].
        temperature: T of the student.

    Returns:
        Scalar, connected to `student_logits` even when N is 0.
    """
    with _float32(student_logits):
        log_student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
        return -((teacher_probs * log_student).sum(-1) * mask_weights(masks)).sum() / len(masks)


def mask_weights(masks: Tensor) -> Tensor:
    """``1 / (masked tokens of its image)`` for each True of bool [B, h, w]: float32 [N]."""
    per_image = masks.sum((1, 2)).clamp_min(1)
    return (1.0 / per_image)[:, None, None].expand(masks.shape)[masks]


def koleo_loss(features: Tensor, group: int) -> Tensor:
    """Kozachenko-Leonenko entropy: pushes vectors from their neighbors (arXiv 1806.03198).

    ``-mean_i log |x_i - x_nn(i)|`` of L2-normalized x, the nearest neighbor nn sought among the
    `group` rows that stand together: the value does not depend on the number of workers.

    Args:
        features: [N, D], N a multiple of `group`; the sampler gives a group different volumes.
        group: Rows of a group, at least 2.

    Returns:
        Scalar.

    Raises:
        ValueError: When the rows do not fill whole groups.
    """
    if group < 2 or len(features) % group:
        raise ValueError(f"koleo_loss: {len(features)} rows do not fill groups of {group}.")
    # In bfloat16 cosines of near-duplicates round to 1: neighbors and gradients would be wrong.
    with _float32(features):
        unit = functional.normalize(features.float(), dim=-1, eps=KOLEO_EPS)
        unit = unit.unflatten(0, (-1, group))  # [N / G, G, D]
        with torch.no_grad():
            cosine = unit @ unit.mT  # [N / G, G, G]
            cosine.diagonal(dim1=1, dim2=2).fill_(-2)
            nearest = cosine.argmax(-1)
        neighbor = unit.gather(1, nearest[..., None].expand_as(unit))
        distance = torch.linalg.vector_norm(unit - neighbor + KOLEO_EPS, dim=-1)
        return -(distance.clamp_min(KOLEO_FLOOR) + KOLEO_EPS).log().mean()


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets in which every prototype gets the same share of the rows (SwAV, arXiv 2006.09882).

    Alternately normalizes columns and rows of ``exp(logits / T)``, in the log domain: the usual
    form overflows once a logit exceeds 88.7 T (3.5 at T = 0.04), this one has no such limit.

    Args:
        logits: [N, K] of this worker; the columns run over the rows of all workers. N may be 0.
        temperature: T > 0.
        iterations: Of column and row normalization.

    Returns:
        Float32 [N, K]; rows sum to one.
    """
    with _float32(logits):
        scores = logits.float() / temperature
        for _ in range(iterations):
            scores = scores - _log_sum_rows(scores)
            scores = scores - scores.logsumexp(1, keepdim=True)
        return scores.exp()


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
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Float32 [N, K] whose rows sum to one, from logits [N, K]; N may be 0."""
        with _float32(logits):
            logits = logits.float()
            probs = torch.softmax((logits - self.center) / temperature, dim=-1)
            total = torch.cat([logits.sum(0), logits.new_tensor([len(logits)])])
            total = reduce_sum(total)
            mean = total[:-1] / total[-1].clamp_min(1)
            moved = self.center.lerp(mean, 1 - self.momentum)
            self.center.copy_(torch.where(total[-1] > 0, moved, self.center))
        return probs


def reduce_sum(values: Tensor) -> Tensor:
    """Sum of `values` over all workers; `values` itself when there is one."""
    if not _distributed():
        return values
    values = values.clone()
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def _log_sum_rows(scores: Tensor) -> Tensor:
    """Log of the column sums of exp(scores) over the rows of all workers: [1, K]."""
    highest = (
        scores.amax(0)
        if len(scores)
        else torch.full((scores.shape[1],), -math.inf, device=scores.device)
    )
    if _distributed():
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    total = reduce_sum((scores - highest).exp().sum(0))
    return (highest + total.log())[None]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _float32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
