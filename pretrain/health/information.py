"""What the targets of a head say about the image: mutual information, use of prototypes, KL.

A collapsed run can show any loss: near 0 when every output is the same prototype, ln K when it is
uniform. The mutual information between image and prototype is 0 in both, and far above in a
healthy run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pretrain.losses import reduce_sum
from pretrain.prototypes import TargetSums


@torch.no_grad()
def head_statistics(
    sums: TargetSums, cross_entropy: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """What one head's targets say, over the rows of all workers.

    ``information = H(mean of t) - mean of H(t)``, ``kl = cross_entropy - mean of H(t)``, in nats.

    Args:
        sums: Over this worker's targets t, M rows; M may be 0.
        cross_entropy: Scalar, sum over this worker's rows of weight * cross-entropy(t, student).
        weights: [M], how much a row counts for the entropy and `cross_entropy`; default 1.

    Returns:
        Scalars ``information``, ``entropy`` (mean of H(t)), ``use`` (H(mean of t) / ln K), ``kl``,
        ``used`` (prototypes that are the largest entry of some row), ``rows``.
    """
    entropy, total, best = sums
    weights = torch.ones_like(entropy) if weights is None else weights
    largest = torch.zeros_like(total).index_fill_(0, best, 1.0)
    scalars = torch.stack(
        [
            entropy.sum(),
            (entropy * weights).sum(),
            weights.sum(),
            cross_entropy.detach().float(),
            entropy.new_tensor(float(len(entropy))),
        ]
    )
    whole = reduce_sum(torch.cat([scalars, total, largest]))
    entropies, weighted, weight, crossed, rows = whole[:5].unbind()
    rows, weight = rows.clamp_min(1), weight.clamp_min(1e-12)
    mean, counts = whole[5:].chunk(2)
    marginal = -torch.special.xlogy(mean / rows, mean / rows).sum()
    return {
        "information": (marginal - entropies / rows).clamp_min(0),
        "entropy": entropies / rows,
        "use": marginal / math.log(len(total)),
        "kl": (crossed - weighted) / weight,
        "used": (counts > 0).sum().float(),
        "rows": rows,
    }
