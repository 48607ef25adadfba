"""A 2D U-Net from scratch, trained and applied as nnU-Net does, under the budget of a suite.

Net: MONAI's `DynUNet` in the sizes of a `Plan`, with deep supervision. Training: Dice pooled over
the batch plus cross-entropy at every resolution but the lowest (weights 1, 1/2, 1/4, ...,
normalised), SGD with Nesterov momentum 0.99, learning rate ``0.01 (1 - t / T)^0.9``, weight decay
3e-5, gradients clipped at norm 12, a third of every batch from slices that show a structure.
Inference: patches at half overlap under a Gaussian, averaged over mirrors.

What differs from nnU-Net: number of steps, batch size and validation are those of the suite, the
same for every model of it; intensities are clipped to the window of their volume before they are
standardised; MONAI compares every output with the reference at full resolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import DataError
from core_mri.metrics import dice
from downstream.baselines.augment import augment, make_augmentation
from downstream.baselines.planning import Plan, resampled_shape
from downstream.best_step import BestStep
from downstream.recipe import Recipe
from downstream.segmentation.structures import sided

LEARNING_RATE = 0.01
MOMENTUM = 0.99
WEIGHT_DECAY = 3e-5
MAX_GRADIENT_NORM = 12.0
FOREGROUND_SHARE = 1 / 3
BATCH = 16
"""Patches of a forward pass without training."""


@dataclass(frozen=True)
class PlannedSlices:
    """Slices of one example at the spacing of the plan."""

    images: Tensor
    """[N, C, H, W], a channel a sequence, each of zero mean and unit spread over its volume."""
    masks: Tensor
    """[N, H, W] int64 class indices."""


def standardized(channels: npt.NDArray[np.float32]) -> Tensor:
    """[C, S, H, W] to [S, C, H, W], each channel of mean 0 and standard deviation 1."""
    found = torch.from_numpy(np.ascontiguousarray(channels)).swapaxes(0, 1)
    axes = (0, 2, 3)
    spread = found.std(axes, keepdim=True).clamp_min(1e-8)
    return (found - found.mean(axes, keepdim=True)) / spread


def resampled(images: Tensor, spacing: Sequence[float], plan: Plan) -> Tensor:
    """[S, C, H, W] at row and column `spacing` to the spacing of the plan, cubic."""
    size = resampled_shape(images.shape[-2:], spacing, plan.spacing)
    if size == tuple(images.shape[-2:]):
        return images
    return functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)


def planned(
    channels: npt.NDArray[np.float32],
    classes: npt.NDArray[np.uint8],
    slices: Sequence[int] | None,
    spacing: Sequence[float],
    plan: Plan,
) -> PlannedSlices:
    """An example on the grid of the plan.

    Args:
        channels: [C, S, H, W], the whole volume.
        classes: [S, H, W].
        slices: Those that count as labelled; None takes all.
        spacing: Of rows and columns.
        plan: The plan.
    """
    chosen = slice(None) if slices is None else list(slices)
    images = resampled(standardized(channels)[chosen], spacing, plan)
    masks = torch.from_numpy(classes[chosen])[:, None]
    masks = functional.interpolate(masks, tuple(images.shape[-2:]), mode="nearest-exact")
    return PlannedSlices(images, masks[:, 0].long())


def make_net(plan: Plan, num_channels: int, num_classes: int, seed: int) -> nn.Module:
    """The untrained net: channels to classes, in training ``[B, heads, classes, H, W]``."""
    from monai.networks.nets import DynUNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = DynUNet(
            spatial_dims=2,
            in_channels=num_channels,
            out_channels=num_classes,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.channels,
            norm_name=("instance", {"affine": True}),
            deep_supervision=len(plan.strides) > 3,
            deep_supr_num=max(1, len(plan.strides) - 3),
        )
    return net


class UNetTrainer:
    """A U-Net in training; a step depends on (seed, step) only, so a resumed run repeats it.

    Args:
        plan: From the training examples.
        training: Labelled examples.
        validation: Labelled examples of other patients, which choose the step that is kept; may be
            empty.
        labels: Class index (from 1) to name.
        recipe: Batch size and validation are taken from it.
        steps: Optimiser steps.
        seed: Of net, batches and augmentation.
        learning_rate: Factor on nnU-Net's.
        device: Where it trains.
        name: Of the task, for messages.

    Raises:
        DataError: DATA-09 when no training slice shows any structure.
    """

    def __init__(
        self,
        plan: Plan,
        training: Sequence[PlannedSlices],
        validation: Sequence[PlannedSlices],
        *,
        labels: Mapping[int, str],
        recipe: Recipe,
        steps: int,
        seed: int,
        learning_rate: float,
        device: torch.device,
        name: str,
    ) -> None:
        from monai.losses import DiceCELoss

        self.images = [image for example in training for image in example.images]
        self.masks = [mask for example in training for mask in example.masks]
        self.foreground = [i for i, mask in enumerate(self.masks) if mask.any()]
        if not self.foreground:
            raise DataError(
                "DATA-09",
                f"task {name}: the masks of all {len(self.masks)} training slices are empty.",
                fix="Raise k, try another seed, or leave unlabelled scans out with `where`.",
            )
        self.validation, self.labels = validation, dict(labels)
        self.recipe, self.steps, self.seed = recipe, steps, seed
        self.net = make_net(plan, training[0].images.shape[1], 1 + len(labels), seed).to(device)
        self.model = UNet(self.net, plan, mirror=not sided(labels.values()), device=device)
        self.augmentation = make_augmentation(plan.patch, mirror=self.model.mirror)
        self.learning_rate = LEARNING_RATE * learning_rate
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=self.learning_rate,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
        )
        self.loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )
        self.best = BestStep(steps, recipe.patience)

    def step(self, index: int) -> dict[str, float]:
        """Do step `index`: one batch, one update; validate when it is time.

        Returns:
            ``loss``, and ``validation_dice`` where it was taken. After a loss that is not finite
            the weights are as before.
        """
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * (1 - index / self.steps) ** 0.9
        images, masks = self._batch(index)
        outputs = self.net(images.to(self.model.device))
        heads = outputs.unbind(1) if outputs.ndim == 5 else (outputs,)
        weights = [2.0**-i for i in range(len(heads))]
        masks = masks[:, None].to(self.model.device)
        losses = [w * self.loss(head, masks) for w, head in zip(weights, heads, strict=True)]
        loss = torch.stack(losses).sum() / sum(weights)
        numbers = {"loss": float(loss.detach())}
        if math.isfinite(numbers["loss"]):
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), MAX_GRADIENT_NORM)
            self.optimizer.step()
        done = index + 1
        if self.validation and (done % self.recipe.validate_every == 0 or done == self.steps):
            numbers["validation_dice"] = self._validate(done)
        self.best.note(done, numbers["loss"], numbers.get("validation_dice"))
        return numbers

    def finish(self) -> UNet:
        """The model at its best validated step, or at the last one without validation."""
        if self.best.weights:
            self.net.load_state_dict(self.best.weights)
        return self.model

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and containers of them."""
        return {
            "weights": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.net.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best.restore(state["best"])

    @property
    def absent(self) -> list[str]:
        """Structures that no training slice shows."""
        present = {value for mask in self.masks for value in torch.unique(mask).tolist()}
        return [name for index, name in self.labels.items() if index not in present]

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and masks [B, H, W] of one step, patches of the plan's size."""
        rng = np.random.default_rng((self.seed, step))
        size = self.recipe.batch_size
        forced = round(size * FOREGROUND_SHARE)
        chosen = [*rng.integers(len(self.images), size=size - forced)]
        chosen += [self.foreground[i] for i in rng.integers(len(self.foreground), size=forced)]
        patches = [
            random_patch(
                self.images[i], self.masks[i], self.model.plan.patch, rng, around=n >= size - forced
            )
            for n, i in enumerate(chosen)
        ]
        images, masks = (torch.stack(parts) for parts in zip(*patches, strict=True))
        return augment(self.augmentation, images, masks, int(rng.integers(2**31)))

    def _validate(self, done: int) -> float:
        """Mean Dice over examples and structures on the plan's grid; the best are kept."""
        scores = []
        for example in self.validation:
            classes = self.model.logits(example.images, mirror=False).argmax(1).numpy()
            masks = example.masks.numpy()
            scores += [dice(masks == c, classes == c) for c in self.labels]
        score = float(np.mean(scores))
        self.best.offer(done, self.net.state_dict(), score)
        return score


def random_patch(
    image: Tensor,
    mask: Tensor,
    patch: tuple[int, int],
    rng: np.random.Generator,
    *,
    around: bool,
) -> tuple[Tensor, Tensor]:
    """A place in a slice [C, H, W]; what reaches beyond it is 0, the mean of the volume.

    Args:
        image: The slice.
        mask: [H, W].
        patch: Rows and columns.
        rng: Decides.
        around: The patch is centred at a pixel of a structure as far as the slice allows.
    """
    pixel = None
    if around:
        found = mask.nonzero()
        pixel = found[int(rng.integers(len(found)))].tolist()
    starts = []
    for axis, (size, want) in enumerate(zip(mask.shape, patch, strict=True)):
        low, high = min(0, (size - want) // 2), max(size - want, (size - want) // 2)
        start = int(rng.integers(low, high + 1)) if pixel is None else pixel[axis] - want // 2
        starts.append(min(max(start, low), high))
    margins = []
    for start, size, want in zip(starts[::-1], mask.shape[::-1], patch[::-1], strict=True):
        margins += [-start, start + want - size]  # negative ones crop
    return functional.pad(image, margins), functional.pad(mask, margins)


@dataclass(frozen=True)
class UNet:
    """A net with the grid it works on."""

    net: nn.Module
    plan: Plan
    mirror: bool
    """Average over mirrored slices."""
    device: torch.device

    def segment(
        self, channels: npt.NDArray[np.float32], spacing: Sequence[float]
    ) -> npt.NDArray[np.uint8]:
        """Class indices [S, H, W] on the stored grid of channels [C, S, H, W] in [0, 1].

        Args:
            channels: The whole volume.
            spacing: Of rows and columns.
        """
        logits = self.logits(resampled(standardized(channels), spacing, self.plan), self.mirror)
        if logits.shape[-2:] != channels.shape[-2:]:
            logits = functional.interpolate(
                logits, tuple(channels.shape[-2:]), mode="bilinear", align_corners=False
            )
        classes: npt.NDArray[np.uint8] = logits.argmax(1).to(torch.uint8).numpy()
        return classes

    @torch.no_grad()
    def logits(self, images: Tensor, mirror: bool) -> Tensor:
        """[S, classes, H, W] of slices [S, C, H, W] on the plan's grid, on the CPU."""
        from monai.inferers import sliding_window_inference

        self.net.eval()
        axes = [axes for n in range(3) for axes in itertools.combinations((2, 3), n)]
        parts = []
        for batch in torch.split(images, BATCH):
            views = [
                sliding_window_inference(
                    batch.flip(flipped).to(self.device),
                    self.plan.patch,
                    BATCH,
                    self.net,
                    overlap=0.5,
                    mode="gaussian",
                ).flip(flipped)
                for flipped in (axes if mirror else [()])
            ]
            parts.append(torch.stack(views).mean(0).cpu())
        return torch.cat(parts)
