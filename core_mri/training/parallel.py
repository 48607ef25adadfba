"""One batch over several workers, as if one had all of it.

Every worker decodes its own rows and gets those of the others, so a loss that is not a mean over
rows (Dice pooled over the batch) is the same everywhere. Only its own rows carry gradients: summed
over the workers they are those of the whole batch, since

    d loss / d weights = sum over rows r of (d loss / d logits_r) (d logits_r / d weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core_mri.devices import rank, world_size
from core_mri.runs import Run


def own_rows(count: int) -> slice:
    """This worker's part of `count` rows; the first ones have one more where they do not divide."""
    few, more = divmod(count, world_size())
    start = rank() * few + min(rank(), more)
    return slice(start, start + few + (rank() < more))


def with_others(own: Tensor, count: int) -> Tensor:
    """All `count` rows of a batch in order, of which only one's own carry gradients.

    Args:
        own: [n, ...], this worker's `own_rows`; the others have theirs in the same type.
        count: Rows of all workers, at least one for each.
    """
    workers = world_size()
    if workers == 1:
        return own
    most = -(-count // workers)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own.detach()
    found = [torch.empty_like(padded) for _ in range(workers)]
    dist.all_gather(found, padded)
    few, more = divmod(count, workers)
    parts = [part[: few + (number < more)] for number, part in enumerate(found)]
    parts[rank()] = own
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by the sum over all workers, sent as one array."""
    if world_size() == 1:
        return
    moving = list(parameters)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in moving]
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    for parameter, part in zip(moving, flat.split([p.numel() for p in moving]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def sum_numbers(own: Mapping[str, float]) -> dict[str, float]:
    """Each number summed over all workers, who give the same names in the same order."""
    if world_size() == 1:
        return dict(own)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor(list(own.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(own, values.tolist(), strict=True))


def any_worker(run: Run) -> Callable[[], bool]:
    """Whether any worker was asked to stop: the same answer in all of them."""

    def asked() -> bool:
        if world_size() == 1:
            return run.stop_requested
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([float(run.stop_requested)], device=device)
        dist.all_reduce(flag)
        return bool(flag.item() > 0)

    return asked
