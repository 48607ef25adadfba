"""How many directions the class tokens use: mean cosine, RankMe and alpha-ReQ on a queue.

KoLeo alone can keep these figures high while the heads are dead, so they never stand without the
mutual information.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pretrain.losses import reduce_sum

_FIT = (0.01, 0.5)
"""Part of the spectrum, as shares of its length, on which alpha is fitted: neither the first
directions, which any network has, nor the tail of rounding."""


@torch.no_grad()
def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine between different rows of features [N, D] over all workers; 1 means one point."""
    unit = functional.normalize(features.float(), dim=-1)
    total = reduce_sum(torch.cat([unit.sum(0), unit.new_tensor([len(unit)])]))
    rows = total[-1]
    return (total[:-1].square().sum() - rows) / (rows * (rows - 1)).clamp_min(1)


@torch.no_grad()
def spectrum(features: Tensor) -> dict[str, Tensor]:
    """Effective rank and decay of the spectrum of centered features.

    With the singular values s of ``x - mean(x)`` and ``p = s / sum(s)``, RankMe is
    ``exp(-sum p log p)`` (Garrido et al., arXiv 2210.02885; centered here, else the common mean of
    all tokens hides a collapse). alpha-ReQ is the slope of ``log s^2 ~ -alpha log rank`` (Agrawal
    et al., NeurIPS 2022); about 1 is healthy, large means few directions.

    Args:
        features: [N, D].

    Returns:
        Scalars ``rank`` (1 to min(N - 1, D); 1 without any spread) and ``alpha``.
    """
    centered = features.float() - features.float().mean(0)
    # The eigenvalues of the D x D covariance are s^2: far cheaper than the SVD of N x D.
    values = torch.linalg.eigvalsh(centered.mT @ centered).flip(0).clamp_min(0)  # [D]
    values = values[: max(1, min(len(features) - 1, len(values)))]
    singular = values.sqrt()
    share = singular / singular.sum().clamp_min(1e-12)
    rank = (-torch.special.xlogy(share, share).sum()).exp()
    first, last = int(_FIT[0] * len(values)), max(3, int(_FIT[1] * len(values)))
    fitted = values[first:last].clamp_min(1e-12).log()
    place = torch.arange(first + 1, first + 1 + len(fitted), device=values.device).log()
    place = place - place.mean()
    slope = (place * fitted).sum() / place.square().sum().clamp_min(1e-12)
    return {"rank": rank, "alpha": -slope}


class FeatureQueue:
    """The newest class tokens of this worker, on their device.

    Args:
        length: Rows kept.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.rows: Tensor | None = None
        self._place = 0
        self._full = False

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Take [N, D]; the oldest rows are overwritten. What is not finite counts as 0."""
        features = features[-self.length :].detach().float().nan_to_num()
        if self.rows is None:
            self.rows = features.new_zeros(self.length, features.shape[1])
        self.rows = self.rows.to(features.device)
        end = self._place + len(features)
        first = min(len(features), self.length - self._place)
        self.rows[self._place : self._place + first] = features[:first]
        if first < len(features):
            self.rows[: len(features) - first] = features[first:]
        self._full |= end >= self.length
        self._place = end % self.length

    def features(self) -> Tensor:
        """[M, D] of all workers, M up to `length` rows of each; the same on all workers."""
        assert self.rows is not None
        own = self.rows if self._full else self.rows[: self._place]
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return own
        # Shares of workers differ by a group, so their rows are padded on the way.
        sizes = own.new_zeros(dist.get_world_size(), dtype=torch.int64)
        sizes[dist.get_rank()] = len(own)
        lengths = reduce_sum(sizes).tolist()
        padded = functional.pad(own, (0, 0, 0, max(lengths) - len(own)))
        everyone = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:size] for rows, size in zip(everyone, lengths, strict=True)])

    def state(self) -> dict[str, Tensor | int | bool | None]:
        """What a checkpoint must hold."""
        return {"rows": self.rows, "place": self._place, "full": self._full}

    def restore(self, state: dict[str, Tensor | int | bool | None]) -> None:
        """Continue from `state`, also with another length."""
        self.rows, self._place, self._full = None, 0, False
        rows, place = state["rows"], int(state["place"] or 0)
        if isinstance(rows, Tensor):
            self.push(torch.cat([rows[place:], rows[:place]]) if state["full"] else rows[:place])
