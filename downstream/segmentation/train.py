"""Fit a segmenter to a handful of labelled slices.

Shapes: N slices, B of a batch, S side in pixels, C classes with background, h = w = S / patch size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from core_mri.models.encoder import Encoder
from core_mri.models.heads import SegmentationHead
from core_mri.models.segmenter import Segmenter, spread_depths
from core_mri.training.schedules import warmup_cosine
from downstream.adapt import adapt
from downstream.config import Adaptation, Recipe
from downstream.segmentation.augment import augment

ENCODE_BATCH = 64
"""Slices encoded at once when nothing is trained through the encoder."""
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class LabelledSlices:
    """Slices of one example on the encoder's grid."""

    images: Tensor
    """[N, C, S, S] in [0, 1], a channel a sequence of the task."""
    masks: Tensor
    """[N, S, S] int64 class indices."""


@dataclass(frozen=True)
class CurvePoint:
    """What is known after a step; the validation score only where it was taken."""

    step: int
    loss: float
    validation_dice: float | None


class FrozenFeatures:
    """Patch tokens of fixed images under a fixed encoder: computed once if they fit in memory.

    Args:
        encoder: Does not move.
        images: [N, 1, S, S].
        depths: Blocks whose tokens are wanted.
        limit_bytes: Memory the tokens may take.
    """

    def __init__(
        self, encoder: Encoder, images: Tensor, depths: Sequence[int], limit_bytes: float
    ) -> None:
        self.encoder = encoder
        self.images = images
        self.depths = depths
        tokens = (images.shape[-1] // encoder.patch_size) ** 2
        size = len(images) * tokens * encoder.embed_dim * len(depths) * images.element_size()
        self._levels = encode(encoder, images, depths) if size <= limit_bytes else None

    def levels(self, index: Tensor) -> list[Tensor]:
        """One [B, h, w, D] per depth for the images at `index` [B]."""
        if self._levels is None:
            return encode(self.encoder, self.images[index], self.depths)
        return [level[index] for level in self._levels]


class Trainer:
    """A segmenter in training; a step depends on (seed, step) only, so a resumed run repeats it.

    Args:
        encoder: Starting weights; copied, never changed.
        training: Labelled examples.
        validation: Labelled examples of other patients, which choose the step that is kept; may be
            empty.
        labels: Class index (from 1) to name.
        adaptation: Which weights move.
        recipe: How.
        steps: Optimiser steps.
        seed: Of head, batches and augmentation; the same for an encoder and its random twin.
        name: Of the task, for messages.

    Raises:
        ConfigError: CONFIG-05 as `check_fits`.
        DataError: DATA-09 when no training slice shows any structure.
    """

    def __init__(
        self,
        encoder: Encoder,
        training: Sequence[LabelledSlices],
        validation: Sequence[LabelledSlices],
        *,
        labels: Mapping[int, str],
        adaptation: Adaptation,
        recipe: Recipe,
        steps: int,
        seed: int,
        name: str,
    ) -> None:
        check_fits(encoder, recipe)
        self.recipe, self.adaptation, self.seed = recipe, adaptation, seed
        self.device = encoder.mask_token.device
        self.segmenter = _build(encoder, labels, adaptation, recipe, seed).to(self.device)
        self.images = torch.cat([example.images for example in training]).to(self.device)
        self.masks = torch.cat([example.masks for example in training]).to(self.device)
        if not self.masks.any():
            raise DataError(
                "DATA-09",
                f"task {name}: the masks of all {len(self.masks)} training slices are empty.",
                fix="Raise k, try another seed, or leave unlabelled scans out with `where`.",
            )
        self.validation = [
            (example.images.to(self.device), example.masks.numpy().astype(np.uint8))
            for example in validation
        ]
        self.frozen: FrozenFeatures | None = None
        self.frozen_validation: list[FrozenFeatures] = []
        if adaptation == "frozen":
            self._freeze()
        self.optimizer, self.peaks = _optimizer(self.segmenter, recipe)
        warmup = math.floor(recipe.warmup_fraction * steps)
        self.schedule = warmup_cosine(0.0, 1.0, 0.0, warmup, steps)
        self.steps = steps
        share = torch.bincount(self.masks.flatten(), minlength=len(labels) + 1) / self.masks.numel()
        self.segmenter.head.start_from(share)
        self.loss = _loss(share)
        self.best: dict[str, Tensor] = {}
        self.best_score = -1.0
        self.best_step = steps
        self.curve: list[CurvePoint] = []

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch, one update; validate when it is time.

        Returns:
            ``loss``, and ``validation_dice`` where it was taken. After a loss that is not finite
            the weights are as before.
        """
        if self.adaptation == "full":
            self.segmenter.encoder.train()
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * float(self.schedule[index])
        levels, images, masks = self._batch(index)
        loss = self.loss(self.segmenter.head(levels, images), masks[:, None])
        numbers = {"loss": float(loss.detach())}
        if math.isfinite(numbers["loss"]):
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(_moving(self.segmenter), MAX_GRADIENT_NORM)
            self.optimizer.step()
        done = index + 1
        if self.validation and (done % self.recipe.validate_every == 0 or done == self.steps):
            numbers["validation_dice"] = self._validate(done)
        self.curve.append(CurvePoint(done, numbers["loss"], numbers.get("validation_dice")))
        return numbers

    def finish(self) -> Segmenter:
        """The segmenter at its best validated step, or at the last one without validation."""
        if self.best:
            self.segmenter.load_state_dict(self.best, strict=False)
        return self.segmenter.eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": _moving_state(self.segmenter),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "curve": [(point.step, point.loss, point.validation_dice) for point in self.curve],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.segmenter.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = dict(state["best"])
        self.best_score, self.best_step = float(state["best_score"]), int(state["best_step"])
        self.curve = [CurvePoint(*point) for point in state["curve"]]

    def _freeze(self) -> None:
        """Add the augmented copies and compute the features of training and validation slices."""
        encoder, depths = self.segmenter.encoder, self.segmenter.depths
        copies = [
            augment(self.images, self.masks, _mixed(self.seed, copy_index))
            for copy_index in range(self.recipe.augmented_copies)
        ]
        self.images = torch.cat([self.images, *(images for images, _ in copies)])
        self.masks = torch.cat([self.masks, *(masks for _, masks in copies)])
        limit = self.recipe.cache_gb * 1e9
        self.frozen = FrozenFeatures(encoder, self.images, depths, limit)
        self.frozen_validation = [
            FrozenFeatures(encoder, images, depths, limit) for images, _ in self.validation
        ]

    def _batch(self, step: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Levels [B, h, w, D], images [B, 1, S, S] and masks [B, S, S] of one step."""
        size = min(self.recipe.batch_size, len(self.images))
        chosen = np.random.default_rng((self.seed, step)).choice(
            len(self.images), size, replace=False
        )
        index = torch.from_numpy(chosen).to(self.device)
        images, masks = self.images[index], self.masks[index]
        if self.frozen is not None:
            return self.frozen.levels(index), images, masks
        images, masks = augment(images, masks, _mixed(self.seed, step))
        encoder, depths = self.segmenter.encoder, self.segmenter.depths
        with torch.set_grad_enabled(self.adaptation == "full"):
            return encoder.intermediates(images, depths), images, masks

    @torch.no_grad()
    def _validate(self, done: int) -> float:
        """Mean Dice over examples and structures on the encoder's grid; the best are kept."""
        self.segmenter.eval()
        scores = []
        for number, (images, masks) in enumerate(self.validation):
            if self.frozen_validation:
                levels = self.frozen_validation[number].levels(torch.arange(len(images)))
            else:
                levels = encode(self.segmenter.encoder, images, self.segmenter.depths)
            classes = self.segmenter.head(levels, images).argmax(1).cpu().numpy()
            scores += [dice(masks == c, classes == c) for c in self.segmenter.labels]
        score = float(np.mean(scores))
        if score > self.best_score:
            self.best_score, self.best_step = score, done
            self.best = copy.deepcopy(_moving_state(self.segmenter))
        return score


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
    """Patch tokens [N, h, w, D] per depth of images [N, 1, S, S], in batches, without gradients."""
    batches = [encoder.intermediates(batch, depths) for batch in torch.split(images, ENCODE_BATCH)]
    return [torch.cat(levels) for levels in zip(*batches, strict=True)]


def check_fits(encoder: Encoder, recipe: Recipe) -> None:
    """Refuse a recipe that this encoder cannot follow.

    Raises:
        ConfigError: CONFIG-05.
    """
    if recipe.image_size % encoder.patch_size:
        raise ConfigError(
            "CONFIG-05",
            f"recipe.image_size {recipe.image_size} is no multiple of the patch size "
            f"{encoder.patch_size}.",
            fix=f"Use {max(1, recipe.image_size // encoder.patch_size) * encoder.patch_size}.",
        )
    if recipe.num_levels > encoder.depth:
        raise ConfigError(
            "CONFIG-05",
            f"recipe.num_levels {recipe.num_levels} is more than the encoder's {encoder.depth} "
            "blocks.",
        )


def _build(
    encoder: Encoder, labels: Mapping[int, str], adaptation: Adaptation, recipe: Recipe, seed: int
) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SegmentationHead(
            encoder.embed_dim,
            len(labels) + 1,
            recipe.num_levels,
            patch_size=encoder.patch_size,
            width=recipe.head_width,
        )
    depths = spread_depths(encoder.depth, recipe.num_levels)
    return Segmenter(
        adapt(encoder, adaptation),
        head,
        depths=depths,
        labels=labels,
        image_size=recipe.image_size,
    )


def _optimizer(segmenter: Segmenter, recipe: Recipe) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW over what moves, and the peak learning rate of each of its groups."""
    groups: list[dict[str, Any]] = [{"params": list(segmenter.head.parameters())}]
    peaks = [recipe.learning_rate]
    moving = [p for p in segmenter.encoder.parameters() if p.requires_grad]
    if moving:
        groups.append({"params": moving})
        peaks.append(recipe.encoder_learning_rate)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay), peaks


def _loss(share: Tensor) -> nn.Module:
    """Dice over the structures plus cross-entropy over all classes, both weighted by rarity.

    Dice is pooled over the batch, so that slices without a structure are not scored on their own.
    A class weighs ``1 / sqrt(share of pixels)``, scaled to 1 on average over pixels: without it a
    few hundred steps on small organs end at all background. A class that no slice shows weighs
    nothing.

    Args:
        share: [C] share of each class among the training pixels.
    """
    from monai.losses import DiceCELoss

    weight = torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)
    loss: nn.Module = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        weight=weight / (weight * share).sum(),
    )
    return loss


def _moving(segmenter: Segmenter) -> list[nn.Parameter]:
    return [p for p in segmenter.parameters() if p.requires_grad]


def _moving_state(segmenter: Segmenter) -> dict[str, Tensor]:
    names = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    return {name: t for name, t in segmenter.state_dict().items() if name in names}


def _mixed(seed: int, number: int) -> int:
    """One seed from two numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
