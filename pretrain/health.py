"""Is the run alive? Statistics of the teacher's targets, and an alarm that no loss can give.

A collapsed run can show any loss: near 0 when every output is the same prototype, ln K when it is
uniform. The mutual information between image and prototype is 0 in both, and far above in a
healthy run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.losses import reduce_sum
from pretrain.prototypes import TargetSums

log = logging.getLogger(__name__)

MIN_SPREAD = 0.05
"""Alarm below this spread of targets over images, which is at most 1 (I-JEPA)."""
ALARM_SHARE = 0.05
"""Alarm below this share of the largest possible mutual information, min(ln K, ln rows)."""
MIN_ALARM_STEPS = 40
"""Steps below the limit before the alarm; 1 % of the run when that is more."""


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
        Scalars ``information``, ``entropy`` (mean of H(t)), ``kl``, ``used`` (prototypes that are
        the largest entry of some row), ``rows``.
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
        "kl": (crossed - weighted) / weight,
        "used": (counts > 0).sum().float(),
        "rows": rows,
    }


@torch.no_grad()
def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine between different rows of features [N, D] over all workers; 1 means one point."""
    unit = functional.normalize(features.float(), dim=-1)
    total = reduce_sum(torch.cat([unit.sum(0), unit.new_tensor([len(unit)])]))
    rows = total[-1]
    return (total[:-1].square().sum() - rows) / (rows * (rows - 1)).clamp_min(1)


class HealthMonitor:
    """Watches the mutual information of every head and tells when one has collapsed.

    Args:
        num_prototypes: K.
        steps: Of the run.
    """

    def __init__(self, num_prototypes: int, steps: int) -> None:
        self.num_prototypes = num_prototypes
        self.patience = max(MIN_ALARM_STEPS, math.ceil(steps / 100))
        self.low_steps: dict[str, int] = {}

    def update(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """Take the numbers of a step, ``HEAD_information`` and ``HEAD_rows`` among them.

        Returns:
            ``HEAD_alarm``: 1 while the head counts as collapsed, else 0. The first step of an
            alarm is logged as a warning.
        """
        alarms = {}
        for key, value in numbers.items():
            head, _, what = key.rpartition("_")
            if what == "information":
                largest = math.log(min(self.num_prototypes, max(numbers[f"{head}_rows"], 2)))
                limit = ALARM_SHARE * largest
            elif what == "spread":
                limit = MIN_SPREAD
            else:
                continue
            self.low_steps[head] = self.low_steps.get(head, 0) + 1 if value < limit else 0
            if self.low_steps[head] == self.patience:
                log.warning(
                    "step %d: the %s head has collapsed: its %s was below %.4f for %d steps, now "
                    "%.4f. The weights are worth nothing from here on.",
                    step, head, what, limit, self.patience, value,
                )  # fmt: skip
            alarms[f"{head}_alarm"] = float(self.low_steps[head] >= self.patience)
        return alarms

    def state(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return dict(self.low_steps)

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue from `state`."""
        self.low_steps = dict(state)
