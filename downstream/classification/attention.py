"""A classifier by attention over slices, trained with the encoder still or moving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.metrics import balanced_accuracy
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.training.schedules import warmup_cosine
from downstream.adapt import adapt, learning_rates, moves
from downstream.best_step import BestStep
from downstream.config import Adaptation, Level
from downstream.lora import merge_lora
from downstream.recipe import Recipe
from downstream.segmentation.augment import augment

HIDDEN = 64
"""Width of the attention."""
ENCODE_BATCH = 64
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Bag:
    """One example: its slices, volume by volume."""

    label: int
    """Position of its class."""
    tokens: list[Tensor]
    """[S, D] of each volume, under the encoder as it was loaded."""
    images: Callable[[], list[Tensor]]
    """[S, 1, N, N] of each volume."""


class AttentionTrainer:
    """A `Classifier` in training; a step depends on (seed, step) only, as in segmentation.

    Loss: cross-entropy, classes weighted by ``1 / their number`` among the training examples. The
    step that is kept has the best balanced accuracy on the validation examples, at a tie the best
    likelihood; without any it is the last.

    Args:
        encoder: Starting weights; copied, never changed.
        training: Labelled examples.
        validation: Of other patients; may be empty.
        classes: Names.
        level: What has one class.
        adaptation: ``frozen`` trains on the tokens as they are; else slices are augmented afresh at
            every step, and move the encoder as far as `downstream.adapt` says.
        recipe: How.
        steps: Optimiser steps.
        seed: Of attention, head, batches and augmentation.
    """

    def __init__(
        self,
        encoder: Encoder,
        training: Sequence[Bag],
        validation: Sequence[Bag],
        *,
        classes: Sequence[str],
        level: Level,
        adaptation: Adaptation,
        recipe: Recipe,
        steps: int,
        seed: int,
    ) -> None:
        self.training, self.validation = training, validation
        self.recipe, self.adaptation, self.steps, self.seed = recipe, adaptation, steps, seed
        self.device = encoder.mask_token.device
        self.classifier = _build(encoder, training, classes, level, adaptation, recipe, seed)
        self.classifier.to(self.device)
        self.optimizer, self.peaks = _optimizer(self.classifier, adaptation, recipe)
        self.schedule = warmup_cosine(
            0.0, 1.0, 0.0, math.floor(recipe.warmup_fraction * steps), steps
        )
        counts = torch.bincount(
            torch.tensor([bag.label for bag in training]), minlength=len(classes)
        )
        self.class_weights = (1 / counts).to(self.device)
        self.best = BestStep(steps, recipe.patience)

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch, one update; validate when it is time.

        Returns:
            ``loss``, and ``validation_balanced_accuracy`` where it was taken. After a loss that is
            not finite the weights are as before.
        """
        self.classifier.encoder.train(moves(self.adaptation))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * float(self.schedule[index])
        rng = np.random.default_rng((self.seed, index))
        size = min(self.recipe.batch_size, len(self.training))
        chosen = [self.training[i] for i in rng.choice(len(self.training), size, replace=False)]
        logits = torch.stack([self.classifier.logits(bags) for bags in self._tokens(chosen, rng)])
        truth = torch.tensor([bag.label for bag in chosen], device=self.device)
        loss = functional.cross_entropy(logits, truth, self.class_weights)
        numbers = {"loss": float(loss.detach())}
        if math.isfinite(numbers["loss"]):
            self.optimizer.zero_grad()
            loss.backward()
            moving = [p for p in self.classifier.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(moving, MAX_GRADIENT_NORM)
            self.optimizer.step()
        done = index + 1
        if self.validation and (done % self.recipe.validate_every == 0 or done == self.steps):
            numbers["validation_balanced_accuracy"] = self._validate(done)
        self.best.note(done, numbers["loss"], numbers.get("validation_balanced_accuracy"))
        return numbers

    def finish(self) -> Classifier:
        """The classifier at its best validated step, or at the last one without validation.

        LoRA is merged.
        """
        self.classifier.load_state_dict(self.best.weights, strict=False)
        merge_lora(self.classifier.encoder)
        return self.classifier.eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": _moving_state(self.classifier),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.classifier.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore(state["best"])

    def probabilities(self, bags: Sequence[Bag]) -> Tensor:
        """[N, C] of the classifier as it is now, on the CPU."""
        rows = []
        with torch.no_grad():
            for bag in bags:
                tokens = [part.to(self.device) for part in bag.tokens]
                if moves(self.adaptation):
                    tokens = [self._encode(images) for images in bag.images()]
                rows.append(torch.softmax(self.classifier.logits(tokens), -1).cpu())
        return torch.stack(rows) if rows else torch.zeros(0, len(self.classifier.classes))

    def _tokens(self, chosen: Sequence[Bag], rng: np.random.Generator) -> list[list[Tensor]]:
        """Class tokens of a batch, volume by volume."""
        if self.adaptation == "frozen":
            return [[part.to(self.device) for part in bag.tokens] for bag in chosen]
        drawn = []
        for bag in chosen:
            images = torch.cat(bag.images())
            size = min(self.recipe.slices_per_example, len(images))
            drawn.append(images[np.sort(rng.choice(len(images), size, replace=False))])
        images = torch.cat(drawn)
        changed, _ = augment(images, torch.zeros_like(images[:, 0]), int(rng.integers(2**31)))
        with torch.set_grad_enabled(moves(self.adaptation)):
            tokens = self.classifier.encoder(changed.to(self.device)).cls
        return [[part] for part in torch.split(tokens, [len(images) for images in drawn])]

    def _encode(self, images: Tensor) -> Tensor:
        batches = torch.split(images, ENCODE_BATCH)
        return torch.cat([self.classifier.encoder(b.to(self.device)).cls for b in batches])

    def _validate(self, done: int) -> float:
        self.classifier.eval()
        found = self.probabilities(self.validation)
        truth = torch.tensor([bag.label for bag in self.validation])
        accuracy = balanced_accuracy(truth.numpy(), found.argmax(1).numpy())
        likelihood = float(found.clamp_min(1e-12).log().gather(1, truth[:, None]).mean())
        self.best.offer(done, _moving_state(self.classifier), accuracy, likelihood)
        return accuracy


def _build(
    encoder: Encoder,
    training: Sequence[Bag],
    classes: Sequence[str],
    level: Level,
    adaptation: Adaptation,
    recipe: Recipe,
    seed: int,
) -> Classifier:
    """Attention and head from the seed; tokens are standardised as the training examples' are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(
            adapt(encoder, adaptation, recipe, seed),
            classes=classes,
            level=level,
            image_size=recipe.image_size,
            attention=HIDDEN,
        )
    tokens = torch.cat([part for bag in training for part in bag.tokens])
    classifier.mean.copy_(tokens.mean(0))
    classifier.std.copy_(tokens.std(0, correction=0).clamp_min(1e-6))
    return classifier


def _optimizer(
    classifier: Classifier, adaptation: Adaptation, recipe: Recipe
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW over what moves, and the peak learning rate of each of its groups."""
    encoder = {id(p) for p in classifier.encoder.parameters()}
    own = [p for p in classifier.parameters() if id(p) not in encoder]
    groups: list[dict[str, Any]] = [{"params": own}]
    peaks = [recipe.learning_rate]
    for rate, parameters in learning_rates(classifier.encoder, adaptation, recipe):
        groups.append({"params": parameters})
        peaks.append(rate)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay), peaks


def _moving_state(classifier: Classifier) -> dict[str, Tensor]:
    names = {name for name, p in classifier.named_parameters() if p.requires_grad}
    return {name: t for name, t in classifier.state_dict().items() if name in names}
