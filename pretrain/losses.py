"""KoLeo, which spreads features, and the weights of masked patches.

Shapes: B images, N rows (tokens), D width. Everything is computed in float32, whatever autocast
says. In a distributed run losses are means over equal shares, so that averaging gradients gives the
step of one process on the concatenated batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

KOLEO_EPS = 1e-8
KOLEO_FLOOR = 1e-4
"""Distance of unit vectors below which a neighbor counts as a duplicate and pulls no gradient: in
float32 the direction between such vectors is rounding, and its gradient would swamp every other."""


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


def reduce_sum(values: Tensor) -> Tensor:
    """Sum of `values` over all workers; `values` itself when there is one."""
    if not distributed():
        return values
    values = values.clone()
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def distributed() -> bool:
    """Whether there are other workers."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _float32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
