"""Numbers of a step that are on their way from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class LateNumbers(Mapping[str, float]):
    """Numbers that are fetched when somebody looks, so that nobody waits for the device before.

    Args:
        tensors: Scalars on one device; their transfer starts at once, in one piece.
        finish: Takes the fetched numbers and gives further ones; called once.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        finish: Callable[[dict[str, float]], Mapping[str, float]] = lambda _numbers: {},
    ) -> None:
        self._names = list(tensors)
        values = torch.stack([tensor.detach().float() for tensor in tensors.values()])
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            values = torch.empty(len(values), pin_memory=True).copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._values = values
        self._finish = finish
        self._numbers: dict[str, float] | None = None

    def __getitem__(self, name: str) -> float:
        return self._fetch()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fetch())

    def __len__(self) -> int:
        return len(self._fetch())

    def _fetch(self) -> dict[str, float]:
        if self._numbers is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            numbers = dict(zip(self._names, self._values.tolist(), strict=True))
            self._numbers = numbers | dict(self._finish(numbers))
        return self._numbers
