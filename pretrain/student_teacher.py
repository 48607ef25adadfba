"""Student and teacher: one forward pass from views to losses.

Shapes: B images of this worker, L local views, S and s sides of global and local views, h x w
patches, N masked patches, D width, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core_mri.models import create_model
from core_mri.models.encoder import Encoder
from core_mri.training.ema import update_ema
from core_mri.training.schedules import warmup_cosine
from pretrain.config import PretrainConfig
from pretrain.heads import ProjectionHead
from pretrain.health import head_statistics, mean_cosine
from pretrain.losses import koleo_loss, mask_weights
from pretrain.masking import sample_masks
from pretrain.objectives import ENCODER, FEATURES, LOSS, Array, Batch, Objective
from pretrain.packed import Crops, encode_packed
from pretrain.prototypes import Spread, TargetSums, cross_views, prototype_loss, same_rows
from pretrain.targets import SoftmaxCentering, Targets, sinkhorn_knopp

DINO, IBOT, KOLEO = "dino", "ibot", "koleo"


class StudentTeacher(Objective):
    """DINO on class tokens, iBOT on masked patches, KoLeo, with separate heads (DINOv2).

    The student learns by gradients; the teacher follows as a moving average and never has
    gradients, nor stochastic depth. Wrap it in DistributedDataParallel as it is: every parameter of
    the student takes part in each forward pass, also where a worker has no masked patch.

    Args:
        config: Of the run; weights are random from torch's global generator.
    """

    losses = (DINO, IBOT, KOLEO)
    heads = (DINO, IBOT)

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        objective = config.objective
        encoder = create_model(
            config.model,
            image_size=config.views.global_size,
            drop_path=config.drop_path,
            layer_scale=config.layer_scale,
        )
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
        calm = create_model(
            config.model,
            image_size=config.views.global_size,
            layer_scale=config.layer_scale,
        )
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
        }

    def frozen(self, step: int) -> list[nn.Parameter]:
        """The prototypes of the student's heads, at the start."""
        if step >= self.config.optimizer.freeze_prototypes_steps:
            return []
        return [self.student.get_parameter(f"{head}.prototypes.weight") for head in self.heads]

    def forward(self, batch: Batch, now: Mapping[str, float]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: Views and masks, M = 2: those of the global views.
            now: ``teacher_temperature`` and ``koleo_weight`` of this step.

        Returns:
            Scalars: ``loss`` (weighted sum, the only one with a gradient), ``dino``, ``ibot``,
            ``koleo``, and the statistics of `pretrain.health`, named by head; and `FEATURES`.
        """
        objective = self.config.objective
        num_images, device = len(batch.global_views), batch.global_views.device
        # Views come first from here on, so that a loss can leave out pairs: [2 * B, ...].
        globals_ = batch.global_views.transpose(0, 1).flatten(0, 1)
        locals_ = batch.local_views.transpose(0, 1).flatten(0, 1)
        masks = batch.masks.transpose(0, 1).flatten(0, 1)
        masked = masks.flatten().nonzero()[:, 0]  # on the processor: no waiting for the device
        weights = mask_weights(masks).to(device, non_blocking=True)

        teacher_cls, targets = self._targets(globals_, masked, now["teacher_temperature"])
        crops = [Crops(globals_, masks.to(device, non_blocking=True), masked)]
        if len(locals_):
            crops.append(Crops(locals_))
        seen, *small = encode_packed(
            self._encoder(self.student), crops, drop_path=self.config.drop_path * self.training
        )
        cls = torch.cat([seen.cls, *(part.cls for part in small)])  # [(2 + L) * B, D]
        dino, dino_sums = self._head_loss(
            DINO, cls, targets[DINO], cross_views(num_images, len(cls) // num_images, device)
        )
        ibot, ibot_sums = self._head_loss(
            IBOT, seen.patches, targets[IBOT], same_rows(weights / len(masks))
        )
        koleo = torch.stack(
            [koleo_loss(view, objective.koleo_group) for view in seen.cls.chunk(2)]
        ).mean()
        loss = objective.dino_weight * dino + objective.ibot_weight * ibot
        loss = loss + now["koleo_weight"] * koleo
        return {
            LOSS: loss,
            DINO: dino.detach(),
            IBOT: ibot.detach(),
            KOLEO: koleo.detach(),
            **_named(DINO, head_statistics(dino_sums, dino * 2 * num_images)),
            **_named(IBOT, head_statistics(ibot_sums, ibot * len(masks), weights)),
            "mean_cosine": mean_cosine(teacher_cls[:num_images]),
            FEATURES: teacher_cls[:num_images],
        }

    @torch.no_grad()
    def update(self, now: Mapping[str, float]) -> None:
        """``teacher <- m * teacher + (1 - m) * student``, m the ``teacher_momentum``."""
        update_ema(self.teacher, self.student, now["teacher_momentum"])

    def _head_loss(
        self, head: str, features: Tensor, targets: Targets, how: Spread
    ) -> tuple[Tensor, TargetSums]:
        projection = self._head(self.student, head)
        return prototype_loss(
            projection.codes(features),
            projection.prototypes.weight,
            targets,
            how,
            self.config.objective.student_temperature,
        )

    @torch.no_grad()
    def _targets(
        self, globals_: Tensor, masked: Tensor, temperature: float
    ) -> tuple[Tensor, dict[str, Targets]]:
        """Class tokens [2 * B, D], and targets of class tokens and of masked patches."""
        (seen,) = encode_packed(self._encoder(self.teacher), [Crops(globals_, wanted=masked)])
        rows = {DINO: seen.cls, IBOT: seen.patches}
        logits = {head: self._head(self.teacher, head)(rows[head]) for head in rows}
        return seen.cls, {
            head: self._sharpen(head, rows, temperature) for head, rows in logits.items()
        }

    def _sharpen(self, head: str, logits: Tensor, temperature: float) -> Targets:
        if self.config.objective.centering == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, self.config.objective.sinkhorn_iterations)
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
