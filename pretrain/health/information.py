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


@torch.no_grad()
def head_statistics(
    probs: Tensor, cross_entropy: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """What one head's targets say, over the rows of all workers.

    ``information = H(mean of t) - mean of H(t)``, ``kl = cross_entropy - mean of H(t)``, in nats.

    Args:
        probs: [N, K] targets t of this worker, rows sum to one. N may be 0.
        cross_entropy: Scalar, sum over this worker's rows of weight * cross-entropy(t, student).
        weights: [N], how much a row counts for the entropy and `cross_entropy`; default 1.

    Returns:
        Scalars ``information``, ``entropy`` (mean of H(t)), ``use`` (H(mean of t) / ln K), ``kl``,
        ``used`` (prototypes that are the largest entry of some row), ``rows``.
    """
    num_rows, num_prototypes = probs.shape
    weights = probs.new_ones(num_rows) if weights is None else weights
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    largest = torch.bincount(probs.argmax(-1), minlength=num_prototypes)
    scalars = torch.stack(
        [
            entropy.sum(),
            (entropy * weights).sum(),
            weights.sum(),
            cross_entropy.detach().float(),
            probs.new_tensor(float(num_rows)),
        ]
    )
    total = reduce_sum(torch.cat([scalars, probs.sum(0), largest.to(probs.dtype)]))
    entropies, weighted, weight, crossed, rows = total[:5].unbind()
    rows, weight = rows.clamp_min(1), weight.clamp_min(1e-12)
    mean, counts = total[5:].chunk(2)
    marginal = -torch.special.xlogy(mean / rows, mean / rows).sum()
    return {
        "information": (marginal - entropies / rows).clamp_min(0),
        "entropy": entropies / rows,
        "use": marginal / math.log(num_prototypes),
        "kl": (crossed - weighted) / weight,
        "used": (counts > 0).sum().float(),
        "rows": rows,
    }
