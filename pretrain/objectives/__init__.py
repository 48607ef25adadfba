"""What a run minimizes: the seam between the trainer and an objective.

The trainer knows batches, schedules, the optimizer and checkpoints; an objective knows networks and
losses. Shapes: B images of this worker, L local views, M masks of an image, h x w patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from pretrain.config import PretrainConfig

ENCODER = "encoder"
"""Key of the encoder in `Objective.student`."""
LOSS = "loss"
"""Key of the value with a gradient in what `Objective.forward` returns."""
FEATURES = "features"
"""Key of [B, D], detached: what the released encoder says of the first view of each image."""

Array = npt.NDArray[np.float64]


class Batch(NamedTuple):
    """What a worker sees in a step; views on its device, masks on the processor.

    What depends on the number of masked patches is then known without waiting for the device.
    """

    global_views: Tensor
    """[B, G, 1, S, S] in [0, 1]."""
    local_views: Tensor
    """[B, L, 1, s, s] in [0, 1]; L may be 0."""
    masks: Tensor
    """Bool [B, M, h, w] over the patches of global views, as `Objective.sample_masks` made them;
    on the processor. The first G say what the student does not see of each global view."""
    numbers: npt.NDArray[np.int64] | None = None
    """[B], global sample indices, of which stochastic depth is a function; without them it draws
    from torch's global generator."""

    def part(self, images: slice) -> Batch:
        """Some of the images."""
        numbers = None if self.numbers is None else self.numbers[images]
        return Batch(
            self.global_views[images], self.local_views[images], self.masks[images], numbers
        )


class Lesson(Protocol):
    """What a teacher says of the whole share of a worker."""

    def part(self, images: slice) -> Lesson:
        """What it says of some of the images."""


class Objective(nn.Module, ABC):
    """Networks and losses of one method; `pretrain.sharding` makes workers average its gradients.

    Every parameter of `student` must take part in each forward pass, and no other parameter may
    require a gradient. The state dict holds all that a run needs to continue.

    Args:
        config: Of the run; weights are random from torch's global generator.
    """

    losses: tuple[str, ...]
    """Parts of the loss in what `forward` returns, which are averaged over workers."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Heads whose targets `forward` describes, each by ``HEAD_`` + `health.head_statistics`."""

    judged_features: ClassVar[bool] = True
    """Whether `FEATURES` that are all alike mean a collapse; not where nothing trains them."""

    student: nn.ModuleDict
    """What the optimizer trains; the encoder under `ENCODER`."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def teacher_encoder(self) -> Encoder:
        """The encoder that is released; the student's own where there is no teacher."""

    @abstractmethod
    def sample_masks(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Masks [B, M, h, w] of the given global sample indices: a function of them and the seed.

        Args:
            numbers: [B], global sample indices.
        """

    @abstractmethod
    def schedules(self) -> dict[str, Array]:
        """The method's own schedules, each an array [steps]."""

    def prepare(self, now: Mapping[str, float]) -> None:
        """What comes before the first forward pass of a step, while no weights are in use.

        Args:
            now: Every schedule at this step.
        """
        del now

    def teach(self, batch: Batch, now: Mapping[str, float]) -> Lesson | None:
        """What depends on the whole share of a worker, which `forward` may see part by part."""
        del batch, now
        return None

    @abstractmethod
    def forward(
        self, batch: Batch, now: Mapping[str, float], lesson: Lesson | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch, each a mean over its images.

        Args:
            batch: Views and masks.
            now: Every schedule at this step.
            lesson: The part of what `teach` gave that belongs to these images; without it they
                are the whole share.

        Returns:
            ``loss`` (scalar, the only one with a gradient), each of `losses`, `FEATURES` and any
            other scalars to be logged, which are the same on all workers.
        """

    @abstractmethod
    def update(self, now: Mapping[str, float]) -> None:
        """Follow the student after a step of the optimizer: a moving average, where there is one.

        Args:
            now: Every schedule at this step.
        """

    def frozen(self, step: int) -> list[nn.Parameter]:
        """Parameters of the student that step `step` (0-based) leaves as they are."""
        del step
        return []


def create_objective(config: PretrainConfig) -> Objective:
    """The objective that ``objective.name`` names, with random weights."""
    from pretrain.objectives.ijepa import JointEmbedding
    from pretrain.objectives.mae import MaskedAutoencoder
    from pretrain.student_teacher import StudentTeacher

    classes: dict[str, type[Objective]] = {
        "distillation": StudentTeacher,
        "mae": MaskedAutoencoder,
        "ijepa": JointEmbedding,
    }
    return classes[config.objective.name](config)
