"""The step that validation patients liked best, and the curve of a training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CurvePoint:
    """What is known after a step; the validation score only where it was taken."""

    step: int
    loss: float
    validation: float | None


class BestStep:
    """The weights of the best validated step so far, and a point of the curve for every step.

    Args:
        steps: Of the training; its last step counts as the best while nothing was validated.
        patience: Validations without a gain after which it is enough; 0: never.

    Attributes:
        weights: Those of the best step; empty without validation.
        score: What validation said of them, -1 without it; at a tie later numbers decide.
        step: The best step.
        curve: All steps.
    """

    def __init__(self, steps: int, patience: int) -> None:
        self.patience = patience
        self.weights: dict[str, Tensor] = {}
        self.score: tuple[float, ...] = (-1.0,)
        self.step = steps
        self.curve: list[CurvePoint] = []

    def offer(self, step: int, weights: Mapping[str, Tensor], *score: float) -> None:
        """Keep a copy of `weights` if their score is the highest so far."""
        if score > self.score:
            self.weights, self.score, self.step = copy.deepcopy(dict(weights)), score, step

    def note(self, step: int, loss: float, validation: float | None) -> None:
        """Add a point to the curve."""
        self.curve.append(CurvePoint(step, loss, validation))

    @property
    def enough(self) -> bool:
        """Whether `patience` validations have seen no gain."""
        late = [p for p in self.curve if p.validation is not None and p.step > self.step]
        return bool(self.patience) and len(late) >= self.patience

    @property
    def validated(self) -> float:
        """The first number of `score`; -1 without validation."""
        return self.score[0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": self.weights,
            "score": list(self.score),
            "step": self.step,
            "curve": [astuple(point) for point in self.curve],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.weights, self.step = dict(state["weights"]), int(state["step"])
        self.score = tuple(map(float, state["score"]))
        self.curve = [CurvePoint(*point) for point in state["curve"]]
