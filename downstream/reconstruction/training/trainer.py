"""A network for reconstruction in training; a step depends on (seed, step) only."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core_mri.errors import RunError
from core_mri.models.encoder import Encoder
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.unrolled import Unrolled
from core_mri.training.ema import update_ema
from core_mri.training.parallel import own_rows, sum_gradients, with_others
from core_mri.training.schedules import warmup_cosine
from downstream.adapt import moves
from downstream.best_step import BestStep
from downstream.lora import merge_lora
from downstream.reconstruction.training.ahead import Ahead
from downstream.reconstruction.training.batches import draw_lines, generator, place
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.groups import Group, Sample
from downstream.reconstruction.training.networks import build_network
from downstream.reconstruction.training.objective import Objective
from downstream.reconstruction.training.slices import Slices, labelled_positions
from downstream.reconstruction.training.validation import Validation, zero_shot_sample

IGNORES, PATIENCE = 3.0, 3
"""A network that leaves so many times more of the measured samples unexplained than the zero-filled
image does, at so many looks in a row, has collapsed. A U-Net of 200 steps on hearts leaves 1.3 (4x)
and 1.04 times (8x) as much, one with random weights 11 and 4.6 times."""


class ReconstructionTrainer:
    """Steps of one training.

    Args:
        config: What is trained and how.
        training: Slices of training patients.
        validation: Slices of other patients, which choose the step that is kept; None for none.
        encoder: What goes inside; copied, never changed.
        device: Where torch computes.

    Raises:
        ConfigError: What `build_network` raises.
        DataError: DATA-09 for more labelled patients than there are.
    """

    def __init__(
        self,
        config: ReconstructionConfig,
        training: Slices,
        validation: Slices | None,
        encoder: Encoder | None,
        device: torch.device,
    ) -> None:
        self.config, self.training = config, training
        self.labelled = labelled_positions(training, config.labelled, config.seed)
        self.steps = config.steps or self._steps_of(config.epochs)
        self.network = build_network(
            config.network, config.encoder, encoder, config.seed, training.coils
        )
        self.network.to(device)
        judge = encoder if config.loss.feature_weight else None
        if judge is not None:
            judge = copy.deepcopy(judge).requires_grad_(False).to(device).eval()
        self.objective = Objective(self.network, config.loss, config.undersampling, judge)
        self.averaged = copy.deepcopy(self.network) if config.fitting.ema else None
        self.optimizer = _optimizer(self.network, config)
        self.schedule = _schedule(config, self.steps)
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.validation: Validation | None = None
        if config.supervision == "zero-shot":
            validation = training
        if validation is not None and config.fitting.num_validation:
            self.validation = Validation(validation, config)
        self.best = BestStep(self.steps, config.fitting.patience)
        self.ignored = 0
        # A CPU has its hands full with the network.
        self._ahead = Ahead(self._prepared) if device.type == "cuda" else None

    @property
    def num_moving(self) -> tuple[int, int]:
        """Parameters that move, and all of the network."""
        moving = sum(p.numel() for p in self._moving())
        return moving, sum(p.numel() for p in self.network.parameters())

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch, one update; validate when due.

        Returns:
            ``loss``, ``gradient_norm``, and where it was taken ``validation`` (higher is better)
            and ``residual``. After a loss that is not finite the weights are as before.

        Raises:
            RunError: RUN-11 when the network ignores its input.
        """
        self.network.train()
        if isinstance(self.network, Unrolled) and self.network.context is not None:
            self.network.context.encoder.train(moves(self.config.encoder.adaptation))
        size = self.config.fitting.batch_size
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * float(self.schedule[index])
        losses = self.objective.losses(self._groups(index), self._share, index / self.steps)
        loss = with_others(losses, size).detach().mean()
        self.optimizer.zero_grad()
        if losses.requires_grad:  # not a batch of air alone
            (losses.sum() / size).backward()
        sum_gradients(self._moving())
        limit = self.config.fitting.max_gradient_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._moving(), limit)
        # The one wait for the device in a step: only sound gradients may move the weights.
        found = torch.stack([loss, norm.to(loss.device)]).tolist()
        numbers = {"loss": found[0]}
        if math.isfinite(numbers["loss"]):
            numbers["gradient_norm"] = found[1]
            if math.isfinite(numbers["gradient_norm"]):
                self.optimizer.step()
                self._average(index)
        done = index + 1
        if self.validation is not None and (
            done % self.config.fitting.validate_every == 0 or done == self.steps
        ):
            numbers |= self._validate(done)
        self.best.note(done, numbers["loss"], numbers.get("validation"))
        return numbers

    def _groups(self, index: int) -> list[Group]:
        """Batch `index`; beside a device the next one is begun."""
        if self._ahead is None:
            return self._prepared(index)
        found = self._ahead.take(index)
        if index + 1 < self.steps:
            self._ahead.start(index + 1)
        return found

    def _prepared(self, index: int) -> list[Group]:
        """This worker's part of batch `index`."""
        size = self.config.fitting.batch_size
        own = range(size)[own_rows(size)]
        return self.objective.prepared([self.sample(index * size + row) for row in own])

    @property
    def _share(self) -> int:
        """Samples of a batch that are this worker's."""
        size = self.config.fitting.batch_size
        return len(range(size)[own_rows(size)])

    def sample(self, index: int) -> Sample:
        """Sample `index` of the training, counted from its first step.

        In joint training even samples are labelled; odd ones are of all patients.
        """
        config = self.config
        labelled = config.supervision == "supervised"
        number = index
        if config.supervision == "joint":
            labelled, number = index % 2 == 0, index // 2
        if labelled:
            position = self.labelled[place(config.seed, number, len(self.labelled))]
        else:
            position = place(config.seed, number, len(self.training))
        rng = generator(config.seed, index)
        own = self.training.read(position, rng, augment=config.fitting.augment)
        if config.supervision == "zero-shot":
            return zero_shot_sample(own, position, config, rng)
        mask = own.mask
        if mask is None:
            mask = draw_lines(config.undersampling, own.kspace.shape[-1], rng)
        return Sample(own, mask, labelled, rng)

    def finish(self) -> Reconstructor:
        """The network at its best validated step, or at the last one; LoRA is merged."""
        if self.best.weights:
            self.network.load_state_dict(self.best.weights, strict=False)
        elif self.averaged is not None:
            self.network.load_state_dict(_moving_state(self.averaged), strict=False)
        if isinstance(self.network, Unrolled) and self.network.context is not None:
            merge_lora(self.network.context.encoder)
        return self.network.eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": _moving_state(self.network),
            "averaged": _moving_state(self.averaged) if self.averaged is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
            "ignored": self.ignored,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.network.load_state_dict(state["weights"], strict=False)
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore(state["best"])
        self.ignored = int(state["ignored"])

    def _validate(self, done: int) -> dict[str, float]:
        assert self.validation is not None
        if self._ahead is not None:
            self._ahead.wait()
        model = self.network if self.averaged is None else self.averaged
        look = self.validation.look(model.eval())
        self.ignored = self.ignored + 1 if look.residual > IGNORES * look.zero_filled else 0
        if self.ignored == PATIENCE:
            raise RunError(
                "RUN-11",
                f"step {done}: the images leave {look.residual:.2f} of the measured samples "
                f"unexplained, zero-filled ones {look.zero_filled:.2f}; more than {IGNORES:g} "
                f"times as much at {PATIENCE} looks in a row.",
                fix="Train by references or held-out samples, at a lower learning rate.",
            )
        self.best.offer(done, _moving_state(model), look.score)
        return {"validation": look.score, "residual": look.residual}

    def _average(self, index: int) -> None:
        """Early on averaged weights follow faster, or they would lag behind."""
        if self.averaged is not None:
            momentum = min(self.config.fitting.ema, (1 + index) / (10 + index))
            update_ema(self.averaged, self.network, momentum)

    def _moving(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def _steps_of(self, epochs: int) -> int:
        count = len(self.labelled)
        if self.config.supervision in ("self-supervised", "zero-shot"):
            count = len(self.training)
        return max(1, math.ceil(epochs * count / self.config.fitting.batch_size))


def _optimizer(network: Reconstructor, config: ReconstructionConfig) -> torch.optim.Optimizer:
    fitting = config.fitting
    inner = isinstance(network, Unrolled) and network.context is not None
    slow = config.encoder.adaptation == "full"
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = inner and slow and name.startswith("context.encoder.")
            rate = config.encoder.learning_rate if own else fitting.learning_rate
            groups.setdefault(rate, []).append(parameter)
    listed: list[dict[str, Any]] = [{"params": own, "lr": rate} for rate, own in groups.items()]
    if fitting.optimizer == "rmsprop":
        return torch.optim.RMSprop(listed, weight_decay=fitting.weight_decay)
    return torch.optim.AdamW(listed, weight_decay=fitting.weight_decay)


def _schedule(config: ReconstructionConfig, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Factor on the learning rate of each step."""
    fitting = config.fitting
    if fitting.optimizer == "adamw":
        return warmup_cosine(0.0, 1.0, 0.0, math.floor(fitting.warmup_fraction * steps), steps)
    factors = np.ones(steps)
    if fitting.drop_at:
        factors[math.floor(fitting.drop_at * steps) :] = 0.1
    return factors


def _moving_state(network: Reconstructor) -> dict[str, Tensor]:
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    return {name: t for name, t in network.state_dict().items() if name in names}
