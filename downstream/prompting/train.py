"""Fit prompt encoder and mask decoder, and a neck of ours, to labelled slices by simulated prompts.

As SAM was trained (Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix A): a random
first prompt, a box or a click, then clicks into the error of the last answer, whose logits are a
prompt too. Shapes: N slices, B of a batch, S side in pixels, h = w = S / patch size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from core_mri.models.encoder import Encoder
from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import Masks, PromptableSegmenter
from core_mri.models.segmenter import spread_depths
from core_mri.training.schedules import warmup_cosine
from downstream.adapt import Start, adapt, learning_rates, moves
from downstream.best_step import BestStep
from downstream.config import Adaptation
from downstream.lora import merge_lora
from downstream.prompting.answers import answer
from downstream.prompting.clicks import Click, box_of, jittered, random_click, random_target
from downstream.prompting.embeddings import FrozenEmbeddings
from downstream.prompting.loss import mask_loss
from downstream.recipe import Recipe
from downstream.segmentation.augment import augment
from downstream.segmentation.examples import LabelledSlices, mixed
from downstream.segmentation.train import (
    MAX_GRADIENT_NORM,
    check_fits,
)

ENCODER = "image_encoder.encoder."
"""Start of the names of the encoder's parameters in the whole model."""
VALIDATED = ("box", "1 click")
"""Methods whose mean Dice chooses the step that is kept."""


class PromptTrainer:
    """A promptable model in training; a step depends on (seed, step) only.

    Args:
        start: Starting weights; copied, never changed. Of SAM, which is taken whole, prompt encoder
            and mask decoder go on training and the image encoder with its neck stays.
        training: Labelled examples; slices that show nothing are left out.
        validation: Labelled examples of other patients, which choose the step that is kept; may be
            empty.
        adaptation: Which weights of the encoder move.
        recipe: How.
        steps: Optimiser steps.
        seed: Of decoder, batches, prompts and augmentation.
        name: Of the task, for messages.

    Raises:
        ConfigError: CONFIG-05 when recipe or adaptation do not fit the weights.
        DataError: DATA-09 when no training slice shows any structure.
    """

    def __init__(
        self,
        start: Start,
        training: Sequence[LabelledSlices],
        validation: Sequence[LabelledSlices],
        *,
        adaptation: Adaptation,
        recipe: Recipe,
        steps: int,
        seed: int,
        name: str,
    ) -> None:
        self.recipe, self.adaptation, self.seed, self.steps = recipe, adaptation, seed, steps
        self.device = next(start.parameters()).device
        if isinstance(start, PromptableSegmenter):
            self.model = _decoder_moves(start, adaptation, recipe)
        else:
            check_fits(start, recipe)
            adapted = adapt(start, adaptation, recipe, seed)
            self.model = _build(adapted, recipe, seed).to(self.device)
        necked = self.model.image_encoder
        self.encoder = necked.encoder if isinstance(necked, NeckedEncoder) else None
        images = torch.cat([example.images for example in training])
        masks = torch.cat([example.masks for example in training])
        if not masks.any():
            raise DataError(
                "DATA-09",
                f"task {name}: the masks of all {len(masks)} training slices are empty.",
                fix="Raise k, try another seed, or leave unlabelled scans out with `where`.",
            )
        copies = recipe.augmented_copies if adaptation == "frozen" else 0
        changed = [augment(images, masks, mixed(seed, number)) for number in range(copies)]
        self.images, self.masks = self._shown(
            torch.cat([images, *(pair[0] for pair in changed)]),
            torch.cat([masks, *(pair[1] for pair in changed)]),
        )
        self.validation = [self._shown(e.images, e.masks) for e in validation if e.masks.any()]
        limit = recipe.cache_gb * 1e9
        self.frozen = [
            FrozenEmbeddings(self.model, own, limit)
            for own, _ in [(self.images, None), *self.validation]
            if adaptation == "frozen"
        ]
        self.optimizer, self.peaks = self._optimizer()
        self.schedule = warmup_cosine(
            0.0, 1.0, 0.0, math.floor(recipe.warmup_fraction * steps), steps
        )
        self.best = BestStep(steps, recipe.patience)

    @property
    def num_moving(self) -> tuple[int, int]:
        """Parameters that move, and all of the model."""
        moving = sum(p.numel() for p in self._moving().values())
        return moving, sum(p.numel() for p in self.model.parameters())

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch of prompts and corrections, one update; validate when due.

        Returns:
            ``loss``, and ``validation_dice`` where it was taken. After a loss that is not finite
            the weights are as before.
        """
        self.model.train()
        (self.encoder or self.model.image_encoder).train(moves(self.adaptation))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * float(self.schedule[index])
        rng = np.random.default_rng((self.seed, index))
        embedding, masks = self._batch(index, rng)
        targets = np.stack([random_target(mask, rng) for mask in masks])
        by_box = rng.random(len(targets)) < 0.5
        loss = torch.zeros((), device=self.device)
        for own in (np.flatnonzero(by_box), np.flatnonzero(~by_box)):
            if len(own):
                chosen = embedding[torch.from_numpy(own).to(self.device)]
                mean = self._converse(chosen, targets[own], bool(by_box[own[0]]), rng)
                loss = loss + mean * (len(own) / len(targets))
        numbers = {"loss": float(loss.detach())}
        if math.isfinite(numbers["loss"]):
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._moving().values(), MAX_GRADIENT_NORM)
            self.optimizer.step()
        done = index + 1
        if self.validation and (done % self.recipe.validate_every == 0 or done == self.steps):
            numbers["validation_dice"] = self.validate()
            self.best.offer(done, self._weights(), numbers["validation_dice"])
        self.best.note(done, numbers["loss"], numbers.get("validation_dice"))
        return numbers

    @torch.no_grad()
    def validate(self) -> float:
        """Mean Dice of `VALIDATED` over examples and structures on the encoder's grid."""
        self.model.eval()
        scores = []
        for number, (images, masks) in enumerate(self.validation, start=1):
            if self.frozen:
                embedding = self.frozen[number].of(torch.arange(len(images)))
            else:
                embedding = torch.cat([self.model.embed_image(b) for b in images.split(32)])
            classes = masks.cpu().numpy()
            for value in np.unique(classes[classes > 0]):
                own = np.flatnonzero((classes == value).any((1, 2)))
                targets = classes[own] == value
                found = answer(
                    self.model,
                    embedding[torch.from_numpy(own)],
                    targets,
                    images.shape[-1],
                    most_clicks=1,
                )
                pairs = [(t, e) for m in VALIDATED for t, e in zip(targets, found[m], strict=True)]
                scores.append(np.mean([dice(target, estimate) for target, estimate in pairs]))
        return float(np.mean(scores))

    def finish(self) -> PromptableSegmenter:
        """The model at its best validated step, or at the last one without validation.

        LoRA is merged.
        """
        self.model.load_state_dict(self.best.weights, strict=False)
        if self.encoder is not None:
            merge_lora(self.encoder)
        return self.model.eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore(state["best"])

    def _shown(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The slices that show a structure, on the device."""
        shown = masks.flatten(1).any(1)
        return images[shown].to(self.device), masks[shown].to(self.device)

    def _batch(
        self, step: int, rng: np.random.Generator
    ) -> tuple[Tensor, Sequence[np.ndarray[Any, Any]]]:
        """Embeddings [B, channels, h, w] and masks B x [S, S] of one step."""
        size = min(self.recipe.batch_size, len(self.images))
        chosen = rng.choice(len(self.images), size, replace=False)
        index = torch.from_numpy(chosen).to(self.device)
        images, masks = self.images[index], self.masks[index]
        if self.frozen:
            return self.frozen[0].of(index), list(masks.cpu().numpy())
        moved_images, moved = augment(images, masks, mixed(self.seed, step))
        kept = moved.flatten(1).any(1)  # a structure at the edge may have left the image
        images = torch.where(kept[:, None, None, None], moved_images, images)
        masks = torch.where(kept[:, None, None], moved, masks)
        return self.model.embed_image(images), list(masks.cpu().numpy())

    def _converse(
        self,
        embedding: Tensor,
        targets: np.ndarray[Any, np.dtype[np.bool_]],
        by_box: bool,
        rng: np.random.Generator,
    ) -> Tensor:
        """Mean loss of all answers to B first prompts of one kind and to their corrections."""
        wanted = torch.from_numpy(targets).to(self.device)
        shape = targets.shape[1:]
        boxes = None
        if by_box:
            drawn = [jittered(box_of(target), shape, rng) for target in targets]
            boxes = torch.from_numpy(np.stack(drawn)).to(self.device)
        clicks: list[list[Click]] = [[] for _ in targets]
        estimate, previous = np.zeros_like(targets), None
        losses = []
        for turn in range(self.recipe.prompt_rounds):
            points = None
            if turn or not by_box:
                for own, target, mask in zip(clicks, targets, estimate, strict=True):
                    own.append(random_click(target, mask, rng))
                given = torch.tensor(clicks, dtype=torch.float32, device=self.device)
                points = (given[..., :2], given[..., 2])
            # One click may mean a part or the whole: three masks, the best of which is right; but
            # the single mask must answer it too, since users may ask for one.
            for several in (False, True) if points and not turn else (False,):
                answered = self.model.decode(embedding, points, boxes, previous, multimask=several)
                logits = functional.interpolate(
                    answered.logits, shape, mode="bilinear", align_corners=False
                )
                losses.append(mask_loss(Masks(logits, answered.iou), wanted))
            best = answered.iou.argmax(1)
            rows = torch.arange(len(best), device=self.device)
            previous = answered.logits[rows, best][:, None].detach()
            estimate = (logits[rows, best] > 0).cpu().numpy()
        return torch.stack(losses).mean()

    def _optimizer(self) -> tuple[torch.optim.Optimizer, list[float]]:
        """AdamW over what moves, and the peak learning rate of each of its groups."""
        new = [p for name, p in self._moving().items() if not name.startswith(ENCODER)]
        groups: list[dict[str, Any]] = [{"params": new}]
        peaks = [self.recipe.learning_rate]
        if self.encoder is not None:
            for rate, own in learning_rates(self.encoder, self.adaptation, self.recipe):
                groups.append({"params": own})
                peaks.append(rate)
        return torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay), peaks

    def _moving(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _weights(self) -> dict[str, Tensor]:
        names = self._moving()
        return {name: t for name, t in self.model.state_dict().items() if name in names}


def _decoder_moves(
    sam: PromptableSegmenter, adaptation: Adaptation, recipe: Recipe
) -> PromptableSegmenter:
    """A copy of SAM of which only prompt encoder and mask decoder move.

    Raises:
        ConfigError: CONFIG-05 for images of another size than SAM's, or an encoder that moves.
    """
    if moves(adaptation) or recipe.image_size != sam.image_size:
        raise ConfigError(
            "CONFIG-05",
            f"SAM is trained with adaptation frozen or head and recipe.image_size "
            f"{sam.image_size}, got {adaptation} and {recipe.image_size}.",
        )
    model = copy.deepcopy(sam).requires_grad_(False)
    model.prompt_encoder.requires_grad_(True)
    model.mask_decoder.requires_grad_(True)
    return model


def _build(encoder: Encoder, recipe: Recipe, seed: int) -> PromptableSegmenter:
    """Raises CONFIG-05 for a width that SAM's decoder cannot have."""
    if recipe.head_width % 16:
        raise ConfigError(
            "CONFIG-05",
            f"recipe.head_width {recipe.head_width}: a mask decoder needs a multiple of 16.",
        )
    depths = spread_depths(encoder.depth, recipe.num_levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        necked = NeckedEncoder(encoder, depths=depths, channels=recipe.head_width)
        return PromptableSegmenter(necked, image_size=recipe.image_size, channels=recipe.head_width)
