"""Fit a segmenter to a handful of labelled slices.

Shapes: N slices, B of a batch, S side in pixels, C classes with background, h = w = S / patch size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core_mri.devices import select_precision
from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from core_mri.models.encoder import Encoder
from core_mri.models.heads import DECODERS
from core_mri.models.segmenter import Inference, Segmenter, spread_depths
from core_mri.training.ema import update_ema
from core_mri.training.parallel import own_rows, sum_gradients, with_others
from core_mri.training.schedules import warmup_cosine
from downstream.adapt import adapt, learning_rates, moves
from downstream.best_step import BestStep
from downstream.config import Adaptation
from downstream.lora import merge_lora
from downstream.recipe import Recipe
from downstream.segmentation.augment import STRENGTHS, Augmentation
from downstream.segmentation.choose import Validated, choose_consistency
from downstream.segmentation.examples import LabelledSlices, StackedSlices, mixed
from downstream.segmentation.features import FrozenFeatures, encode
from downstream.segmentation.structures import sided

MAX_GRADIENT_NORM = 1.0


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
        sequences: Names of the channels of the examples; by default numbered.
        generated: Synthetic examples, of which ``recipe.synthetic_share`` of a batch are.

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
        sequences: Sequence[str] = (),
        generated: Sequence[LabelledSlices] = (),
    ) -> None:
        check_fits(encoder, recipe)
        check_sides(labels, recipe)
        self.recipe, self.adaptation, self.seed = recipe, adaptation, seed
        self.device = encoder.mask_token.device
        self.precision = select_precision(self.device, recipe.precision).precision
        channels = training[0].images.shape[1]
        named = sequences or ([""] if channels == 1 else [f"{i + 1}" for i in range(channels)])
        self.segmenter = _build(encoder, labels, adaptation, recipe, seed, named).to(self.device)
        self.training = StackedSlices([*training, *generated], self.device)
        count = sum(len(example.masks) for example in training)
        self.synthetic = np.arange(len(self.training)) >= count
        """[N], which slices are generated ones."""
        self.masks = self.training.masks
        if not self.masks.any():
            raise DataError(
                "DATA-09",
                f"task {name}: the masks of all {len(self.masks)} training slices are empty.",
                fix="Raise k, try another seed, or leave unlabelled scans out with `where`.",
            )
        self.validation = [StackedSlices([example], self.device) for example in validation]
        self.frozen: FrozenFeatures | None = None
        self.frozen_validation: list[FrozenFeatures] = []
        if adaptation == "frozen":
            self._freeze()
        self.optimizer, self.peaks = _optimizer(self.segmenter, adaptation, recipe)
        warmup = math.floor(recipe.warmup_fraction * steps)
        self.schedule = warmup_cosine(0.0, 1.0, 0.0, warmup, steps)
        self.steps = steps
        share = torch.bincount(self.masks.flatten(), minlength=len(labels) + 1) / self.masks.numel()
        self.segmenter.head.start_from(share)
        self.averaged = _shadow(self.segmenter, adaptation) if recipe.ema else None
        self.loss = _loss(share, recipe)
        self.best = BestStep(steps, recipe.patience)

    @property
    def num_moving(self) -> tuple[int, int]:
        """Parameters that move, and all of the model."""
        counts = [(p.numel(), p.requires_grad) for p in self.segmenter.parameters()]
        return sum(n for n, moving in counts if moving), sum(n for n, _ in counts)

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch, one update; validate when it is time.

        Returns:
            ``loss``, and ``validation_dice`` where it was taken. After a loss that is not finite
            the weights are as before.
        """
        self.segmenter.head.train()
        if moves(self.adaptation):
            self.segmenter.encoder.train()
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * float(self.schedule[index])
        with self._autocast():
            levels, images, masks = self._batch(index)
            logits = self.segmenter.head(levels, images)
        loss = self.loss(with_others(logits.float(), len(masks)), masks[:, None])
        numbers = {"loss": float(loss.detach())}
        if math.isfinite(numbers["loss"]):
            self.optimizer.zero_grad()
            loss.backward()
            sum_gradients(_moving(self.segmenter))
            nn.utils.clip_grad_norm_(_moving(self.segmenter), MAX_GRADIENT_NORM)
            self.optimizer.step()
            self._average(index)
        done = index + 1
        if self.validation and (done % self.recipe.validate_every == 0 or done == self.steps):
            numbers["validation_dice"] = self._validate(done)
        self.best.note(done, numbers["loss"], numbers.get("validation_dice"))
        return numbers

    def finish(self) -> Segmenter:
        """The segmenter at its best validated step, or at the last one without validation.

        With ``recipe.consistency`` its 3D consistency is chosen here, on the validation volumes;
        LoRA is merged.
        """
        if kept := self.best.weights or (self.averaged and _moving_state(self.averaged)):
            self.segmenter.load_state_dict(kept, strict=False)
        self.averaged = None
        if self.recipe.consistency == "validated":
            self.segmenter.inference = choose_consistency(
                self._validated(), self.segmenter.inference, len(self.segmenter.labels)
            )
        merge_lora(self.segmenter.encoder)
        return self.segmenter.eval()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": _moving_state(self.segmenter),
            "averaged": _moving_state(self.averaged) if self.averaged else {},
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.segmenter.load_state_dict(state["weights"], strict=False)
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore(state["best"])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def _average(self, index: int) -> None:
        """Move the averaged weights; early on they follow faster, or they would lag behind."""
        if self.averaged is None:
            return
        momentum = min(self.recipe.ema, (1 + index) / (10 + index))
        update_ema(self.averaged.head, self.segmenter.head, momentum)
        if moves(self.adaptation):
            update_ema(self.averaged.encoder, self.segmenter.encoder, momentum)

    def _freeze(self) -> None:
        """Add the augmented copies and compute the features of training and validation slices."""
        encoder, depths = self.segmenter.encoder, self.segmenter.depths
        self.training.add_copies(self.seed, self.recipe)
        self.masks = self.training.masks
        self.synthetic = np.tile(self.synthetic, 1 + self.recipe.augmented_copies)
        limit = self.recipe.cache_gb * 1e9
        self.frozen = FrozenFeatures(encoder, self.training.images, depths, limit)
        self.frozen_validation = [
            FrozenFeatures(encoder, example.images, depths, limit) for example in self.validation
        ]

    def _batch(self, step: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Levels [b, (P,) h, w, D] and images [b, P, S, S] of one step, masks [B, S, S].

        Of the B slices of a batch this worker has b; their masks everybody has.
        """
        chosen = self._drawn(np.random.default_rng((self.seed, step)))
        size = len(chosen)
        everything, own = torch.from_numpy(chosen).to(self.device), own_rows(size)
        index = everything[own]
        images, masks = self.training.batch(index), self.masks[everything]
        if self.frozen is not None:
            return self.frozen.levels(self.training.tokens_at(index)), images, masks
        drawn = Augmentation(
            size,
            mixed(self.seed, step),
            mirror=self.recipe.mirror,
            strength=STRENGTHS[self.recipe.augmentation],
        )
        which = torch.arange(size)
        images, masks = drawn.images(images, which[own]), drawn.masks(masks, which)
        planes = images.flatten(0, 1)[:, None]
        with torch.set_grad_enabled(moves(self.adaptation)):
            levels = self.segmenter.encoder.intermediates(planes, self.segmenter.depths)
        if images.shape[1] > 1:
            levels = [level.unflatten(0, images.shape[:2]) for level in levels]
        return levels, images, masks

    def _drawn(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Numbers of the slices of one step; the share of synthetic ones is the same in each."""
        size = min(self.recipe.batch_size, len(self.training))
        if not self.synthetic.any():
            return rng.choice(len(self.training), size, replace=False)
        wanted = round(self.recipe.synthetic_share * size)
        parts = [
            rng.choice(own, min(count, len(own)), replace=False)
            for own, count in (
                (np.flatnonzero(~self.synthetic), size - wanted),
                (np.flatnonzero(self.synthetic), wanted),
            )
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _logits(self, model: Segmenter, number: int) -> Tensor:
        """[N, C, S, S] of validation example `number`."""
        example = self.validation[number]
        index = torch.arange(len(example), device=self.device)
        at = example.tokens_at(index)
        if self.frozen_validation:
            levels = self.frozen_validation[number].levels(at)
        else:
            encoded = encode(model.encoder, example.images, model.depths)
            levels = [level[at] for level in encoded]
        decoded: Tensor = model.head(levels, example.batch(index))
        return decoded.float()

    def _validate(self, done: int) -> float:
        """Mean Dice over examples and structures on the encoder's grid; the best are kept."""
        model = (self.averaged or self.segmenter).eval()
        scores = []
        with self._autocast():
            for number, example in enumerate(self.validation):
                classes = self._logits(model, number).argmax(1).cpu().numpy()
                masks = example.masks.cpu().numpy()
                scores += [dice(masks == c, classes == c) for c in model.labels]
        score = float(np.mean(scores))
        self.best.offer(done, _moving_state(model), score)
        return score

    def _validated(self) -> list[Validated]:
        """The validation examples that are whole volumes, and what the kept model says of them."""
        model = self.segmenter.eval()
        return [
            Validated(
                self._logits(model, number).softmax(1),
                example.masks.cpu().numpy().astype(np.uint8),
                example.gap_mm,
            )
            for number, example in enumerate(self.validation)
            if example.gap_mm is not None
        ]


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


def check_sides(labels: Mapping[int, str], recipe: Recipe) -> None:
    """Refuse mirrored slices where a structure has a side.

    Raises:
        ConfigError: CONFIG-05.
    """
    if recipe.mirror and (names := sided(labels.values())):
        raise ConfigError(
            "CONFIG-05",
            f"recipe.mirror makes left out of right, and {', '.join(names)} must be told apart.",
            fix="Set recipe.mirror to false.",
        )


def _build(
    encoder: Encoder,
    labels: Mapping[int, str],
    adaptation: Adaptation,
    recipe: Recipe,
    seed: int,
    sequences: Sequence[str],
) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DECODERS[recipe.decoder](
            encoder.embed_dim,
            len(labels) + 1,
            recipe.num_levels,
            patch_size=encoder.patch_size,
            width=recipe.head_width,
            planes=(2 * recipe.neighbours + 1) * len(sequences),
            fusion=recipe.fusion,
        )
    return Segmenter(
        adapt(encoder, adaptation, recipe, seed),
        head,
        depths=spread_depths(encoder.depth, recipe.num_levels),
        labels=labels,
        image_size=recipe.image_size,
        sequences=sequences,
        neighbours=recipe.neighbours,
        inference=Inference(
            pixel_mm=recipe.pixel_mm,
            overlap=recipe.overlap,
            mirror=recipe.mirror,
            scales=recipe.scales,
        ),
    )


def _shadow(segmenter: Segmenter, adaptation: Adaptation) -> Segmenter:
    """A copy for averaged weights; an encoder that does not move is shared."""
    shared = {} if moves(adaptation) else {id(segmenter.encoder): segmenter.encoder}
    return copy.deepcopy(segmenter, shared)


def _optimizer(
    segmenter: Segmenter, adaptation: Adaptation, recipe: Recipe
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW over what moves, and the peak learning rate of each of its groups."""
    groups: list[dict[str, Any]] = [{"params": list(segmenter.head.parameters())}]
    peaks = [recipe.learning_rate]
    for rate, parameters in learning_rates(segmenter.encoder, adaptation, recipe):
        groups.append({"params": parameters})
        peaks.append(rate)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay), peaks


def _loss(share: Tensor, recipe: Recipe) -> nn.Module:
    """MONAI's Dice over the structures plus cross-entropy or focal loss over all classes.

    Dice is pooled over the batch, so that slices without a structure are not scored on their own.
    A class weighs ``1 / sqrt(share of pixels)``, scaled to 1 on average over pixels: without it a
    few hundred steps on small organs end at all background. A class that no slice shows weighs
    nothing.

    Args:
        share: [C] share of each class among the training pixels.
        recipe: Which of the two.
    """
    from monai.losses import DiceCELoss, DiceFocalLoss

    weight = torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)
    weight = weight / (weight * share).sum()
    common = {"to_onehot_y": True, "softmax": True, "batch": True}
    if recipe.loss == "dice_focal":
        # Here the background option would drop it from the focal loss too.
        loss: nn.Module = DiceFocalLoss(weight=weight.tolist(), **common)
    else:
        loss = DiceCELoss(include_background=False, weight=weight, **common)
    return loss


def _moving(segmenter: Segmenter) -> list[nn.Parameter]:
    return [p for p in segmenter.parameters() if p.requires_grad]


def _moving_state(segmenter: Segmenter) -> dict[str, Tensor]:
    names = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    return {name: t for name, t in segmenter.state_dict().items() if name in names}
