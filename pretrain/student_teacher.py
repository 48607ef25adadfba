"""Student and teacher: one forward pass from views to losses.

Shapes: B images of this worker, L local views, S and s sides of global and local views, h x w
patches, N masked patches, D width, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from core_mri.training.ema import update_ema
from core_mri.training.schedules import warmup_cosine
from pretrain.config import PretrainConfig
from pretrain.gram import REFRESH, WEIGHT, gram_loss, gram_schedules
from pretrain.heads import ProjectionHead
from pretrain.health import head_statistics
from pretrain.losses import koleo_loss, mask_weights
from pretrain.masking import sample_masks
from pretrain.objectives import ENCODER, FEATURES, LOSS, Array, Batch, Lesson, Objective
from pretrain.packed import Crops, encode_packed
from pretrain.prototypes import Spread, TargetSums, cross_views, prototype_loss, same_rows
from pretrain.sampler import DROP_PATH, random_stream
from pretrain.sharding import within
from pretrain.start import build_encoder
from pretrain.targets import SoftmaxCentering, Targets, sinkhorn_knopp, softmax_targets

DINO, IBOT, KOLEO, GRAM = "dino", "ibot", "koleo", "gram"


class Targeted(NamedTuple):
    """What the teacher says of B images."""

    cls: Tensor
    """[2 * B, D], the first views before the second ones."""
    targets: dict[str, Targets]
    """Of the class tokens, and of the masked patches in the order of `masks`."""
    masks: Tensor
    """Bool [2 * B, h, w], on the processor."""

    def part(self, images: slice) -> Targeted:
        """What it says of some of the images."""
        views = torch.arange(len(self.cls)).unflatten(0, (2, -1))[:, images].flatten()
        chosen = torch.zeros(len(self.cls), dtype=torch.bool)
        chosen[views] = True
        image = self.masks.flatten(1).nonzero()[:, 0]
        rows = {DINO: views, IBOT: chosen[image].nonzero()[:, 0]}
        device = self.cls.device
        return Targeted(
            self.cls[views.to(device)],
            {head: part.take(rows[head].to(device)) for head, part in self.targets.items()},
            self.masks[views],
        )


class StudentTeacher(Objective):
    """DINO on class tokens, iBOT on masked patches, KoLeo, with separate heads (DINOv2).

    With ``gram_weight`` also Gram anchoring (DINOv3); the anchor is an encoder of its own.

    The student learns by gradients; the teacher follows as a moving average and never has
    gradients, nor stochastic depth. Every parameter of the student takes part in each forward pass,
    also where a worker has no masked patch.

    Args:
        config: Of the run; weights are random from torch's global generator.
    """

    losses: tuple[str, ...] = (DINO, IBOT, KOLEO)
    heads = (DINO, IBOT)

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        objective = config.objective
        encoder = build_encoder(config, drop_path=config.drop_path)
        heads = {
            name: ProjectionHead(
                encoder.embed_dim,
                objective.num_prototypes,
                hidden=objective.head_hidden,
                bottleneck=objective.head_bottleneck,
            )
            for name in (DINO, IBOT)
        }
        self.student = nn.ModuleDict({ENCODER: encoder, **heads})
        calm = Encoder(replace(encoder.config, drop_path=0.0))
        calm.load_state_dict(encoder.state_dict())
        self.teacher = nn.ModuleDict({ENCODER: calm, **copy.deepcopy(heads)})
        self.teacher.requires_grad_(False).eval()
        self.centers = nn.ModuleDict(
            {
                name: SoftmaxCentering(objective.num_prototypes, objective.center_momentum)
                for name in (DINO, IBOT)
            }
            if objective.centering == "softmax"
            else {}
        )
        self.anchor = copy.deepcopy(calm) if objective.gram_weight else None
        if self.anchor is not None:
            self.losses = (*self.losses, GRAM)

    @property
    def teacher_encoder(self) -> Encoder:
        """The encoder that is released."""
        return self._encoder(self.teacher)

    def train(self, mode: bool = True) -> StudentTeacher:
        """Training mode for the student alone."""
        super().train(mode)
        self.teacher.eval()
        return self

    def sample_masks(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Block masks [B, 2, h, w] of the global views: patches that the student does not see."""
        side = self.config.views.global_size // self.teacher_encoder.patch_size
        return sample_masks(numbers, (side, side), self.config.masking, seed=self.config.seed)

    def schedules(self) -> dict[str, Array]:
        """Momentum and temperature of the teacher, and the weight of KoLeo, which grows."""
        objective, steps = self.config.objective, self.config.steps
        cold, warm = objective.teacher_temperature
        warmup, koleo = self.config.optimizer.warmup_steps, objective.koleo_weight
        return {
            "teacher_momentum": warmup_cosine(
                0.0, *self.config.optimizer.teacher_momentum, 0, steps
            ),
            "teacher_temperature": warmup_cosine(
                cold, warm, warm, objective.teacher_temperature_warmup, steps
            ),
            "koleo_weight": warmup_cosine(0.0, koleo, koleo, warmup, steps),
            **(gram_schedules(objective, steps) if self.anchor is not None else {}),
        }

    def frozen(self, step: int) -> list[nn.Parameter]:
        """The prototypes of the student's heads, at the start."""
        if step >= self.config.optimizer.freeze_prototypes_steps:
            return []
        return [self.student.get_parameter(f"{head}.prototypes.weight") for head in self.heads]

    def prepare(self, now: Mapping[str, float]) -> None:
        """Take a new anchor where `gram.REFRESH` says so."""
        if self.anchor is not None and now[REFRESH]:
            update_ema(self.anchor, self.teacher_encoder, 0.0)

    @torch.no_grad()
    def teach(self, batch: Batch, now: Mapping[str, float]) -> Targeted:
        """Class tokens and targets of the global views of a batch."""
        globals_ = batch.global_views.transpose(0, 1).flatten(0, 1)
        masks = batch.masks.transpose(0, 1).flatten(0, 1)
        masked = masks.flatten().nonzero()[:, 0]
        (seen,) = encode_packed(
            self._encoder(self.teacher),
            [Crops(globals_, wanted=masked)],
            compiled=self.config.compile,
        )
        rows = {DINO: seen.cls, IBOT: seen.patches}
        logits = {head: self._head(self.teacher, head)(rows[head]) for head in rows}
        targets = {
            head: self._sharpen(head, part, now["teacher_temperature"])
            for head, part in logits.items()
        }
        return Targeted(seen.cls, targets, masks)

    def forward(
        self, batch: Batch, now: Mapping[str, float], lesson: Lesson | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: Views and masks, M = 2: those of the global views.
            now: ``teacher_temperature`` and ``koleo_weight`` of this step; with an anchor also
                `gram.WEIGHT`.
            lesson: As `teach` gives it.

        Returns:
            Scalars: ``loss`` (weighted sum, the only one with a gradient), ``dino``, ``ibot``,
            ``koleo``, ``gram`` where there is an anchor, and the statistics of `pretrain.health`,
            named by head; and `FEATURES`.
        """
        objective = self.config.objective
        num_images, device = len(batch.global_views), batch.global_views.device
        # Views come first from here on, so that a loss can leave out pairs: [2 * B, ...].
        globals_ = batch.global_views.transpose(0, 1).flatten(0, 1)
        locals_ = batch.local_views.transpose(0, 1).flatten(0, 1)
        masks = batch.masks.transpose(0, 1).flatten(0, 1)
        masked = masks.flatten().nonzero()[:, 0]  # on the processor: no waiting for the device
        weights = mask_weights(masks).to(device, non_blocking=True)

        taught = self.teach(batch, now) if lesson is None else cast("Targeted", lesson)
        targets = taught.targets
        anchored = self.anchor is not None and now[WEIGHT] > 0
        wanted = torch.arange(masks.numel()) if anchored else masked
        draws = self._draws(batch)
        crops = [Crops(globals_, masks.to(device, non_blocking=True), wanted, draws[0])]
        if len(locals_):
            crops.append(Crops(locals_, draws=draws[1]))
        seen, *small = encode_packed(
            self._encoder(self.student),
            crops,
            drop_path=self.config.drop_path * self.training,
            compiled=self.config.compile,
        )
        cls = torch.cat([seen.cls, *(part.cls for part in small)])  # [(2 + L) * B, D]
        dino, dino_sums = self._head_loss(
            DINO, cls, targets[DINO], cross_views(num_images, len(cls) // num_images, device)
        )
        patches = seen.patches
        if anchored:
            patches = patches.index_select(0, masked.to(device, non_blocking=True))
        ibot, ibot_sums = self._head_loss(
            IBOT, patches, targets[IBOT], same_rows(weights / len(masks))
        )
        koleo = torch.stack(
            [koleo_loss(view, objective.koleo_group) for view in seen.cls.chunk(2)]
        ).mean()
        loss = objective.dino_weight * dino + objective.ibot_weight * ibot
        loss = loss + now["koleo_weight"] * koleo
        gram = torch.zeros_like(loss)
        if anchored:
            gram = self._gram_loss(globals_, seen.patches)
            loss = loss + now[WEIGHT] * gram
        return {
            LOSS: loss,
            DINO: dino.detach(),
            IBOT: ibot.detach(),
            KOLEO: koleo.detach(),
            **({GRAM: gram.detach()} if self.anchor is not None else {}),
            **_named(DINO, head_statistics(dino_sums, dino * 2 * num_images)),
            **_named(IBOT, head_statistics(ibot_sums, ibot * len(masks), weights)),
            FEATURES: taught.cls[:num_images],
        }

    @torch.no_grad()
    def update(self, now: Mapping[str, float]) -> None:
        """``teacher <- m * teacher + (1 - m) * student``, m the ``teacher_momentum``."""
        update_ema(self.teacher, self.student, now["teacher_momentum"])

    def head_pass(self) -> Tensor:
        """The loss of both heads on random features of as many rows as the first step has.

        What `pretrain.bench` times; centers move.
        """
        config, device = self.config, self.teacher_encoder.mask_token.device
        masks = torch.from_numpy(self.sample_masks(np.arange(config.batch_size))).flatten(0, 1)
        weights = mask_weights(masks).to(device)
        views = 2 + config.views.num_local
        student = {DINO: views * config.batch_size, IBOT: len(weights)}
        teacher = {DINO: 2 * config.batch_size, IBOT: len(weights)}
        spreads = {
            DINO: cross_views(config.batch_size, views, device),
            IBOT: same_rows(weights / len(masks)),
        }
        losses = []
        for head in self.heads:
            own, kept = (
                torch.randn(rows[head], self.teacher_encoder.embed_dim, device=device)
                for rows in (student, teacher)
            )
            logits = self._head(self.teacher, head)(kept)
            targets = self._sharpen(head, logits, config.objective.teacher_temperature[0])
            losses.append(self._head_loss(head, own.requires_grad_(), targets, spreads[head])[0])
        return torch.stack(losses).sum()

    def _head_loss(
        self, head: str, features: Tensor, targets: Targets, how: Spread
    ) -> tuple[Tensor, TargetSums]:
        projection = self._head(self.student, head)
        return prototype_loss(
            within(projection, projection.codes, features),
            projection.prototypes.weight,
            targets,
            how,
            self.config.objective.student_temperature,
        )

    def _gram_loss(self, globals_: Tensor, patches: Tensor) -> Tensor:
        """Of all patches [2 * B * h * w, D] of the global views [2 * B, 1, S, S]."""
        assert self.anchor is not None
        with torch.no_grad():
            (kept,) = encode_packed(
                self.anchor, [Crops(globals_, wanted=torch.arange(len(patches)))]
            )
        own, anchor = (x.unflatten(0, (len(globals_), -1)) for x in (patches, kept.patches))
        return gram_loss(own, anchor)

    def _draws(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Numbers for stochastic depth of global and local views: see `Crops.draws`.

        Those of a KoLeo group depend on its first sample alone, not on the worker or the batch.
        """
        if batch.numbers is None or not self.config.drop_path:
            return None, None
        number, group = 2 * self._encoder(self.student).depth, self.config.objective.koleo_group
        views = (batch.global_views.shape[1], batch.local_views.shape[1])
        drawn = np.stack(
            [
                random_stream(self.config.seed, int(first), DROP_PATH).random(
                    (number, sum(views), group), dtype=np.float32
                )
                for first in batch.numbers[::group]
            ],
            2,
        )
        parts = torch.from_numpy(drawn).split(views, 1)
        return parts[0], parts[1]

    def _sharpen(self, head: str, logits: Tensor, temperature: float) -> Targets:
        if self.config.objective.centering == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, self.config.objective.sinkhorn_iterations)
        if self.config.objective.centering == "none":
            return softmax_targets(logits, temperature)
        targets: Targets = self.centers[head](logits, temperature)
        return targets

    @staticmethod
    def _encoder(network: nn.ModuleDict) -> Encoder:
        encoder = network[ENCODER]
        assert isinstance(encoder, Encoder)
        return encoder

    @staticmethod
    def _head(network: nn.ModuleDict, name: str) -> ProjectionHead:
        head = network[name]
        assert isinstance(head, ProjectionHead)
        return head


def _named(head: str, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{head}_{name}": number for name, number in numbers.items()}
