"""I-JEPA: predict what a teacher says about blocks of a view from its surroundings.

Assran et al., arXiv 2301.08243. Shapes: B images of this worker, T target blocks, N patches, n
patches of the context, m of a target block, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.models.encoder import Encoder
from core_mri.training.ema import update_ema
from core_mri.training.schedules import warmup_cosine
from pretrain.config import PretrainConfig
from pretrain.config_masked import IjepaConfig
from pretrain.objectives import ENCODER, FEATURES, LOSS, Array, Batch, Lesson, Objective
from pretrain.objectives.masked import (
    SmallTransformer,
    calm,
    encode_visible,
    positions_of,
    take,
)
from pretrain.sampler import MASKS, random_stream
from pretrain.start import build_encoder

_PREDICTOR = "predictor"
_ATTEMPTS = 20


class JointEmbedding(Objective):
    """Student on the context, predictor, and a moving teacher on the whole view.

    The encoder has no loss on its class token, so the released one says the mean of its patches
    there (`EncoderConfig.pool`), as the paper's evaluations do.

    ``ijepa_constant`` is the loss of predicting the mean of the targets at each place, and
    ``target_spread`` in [0, 1] how much they differ between images; both go to 0 in a collapse,
    which the loss alone would show as success.

    Args:
        config: Of the run; weights are random from torch's global generator.
    """

    losses = ("ijepa", "ijepa_constant", "target_spread")

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        ijepa = config.ijepa
        encoder = build_encoder(config, drop_path=config.drop_path, pool="mean")
        encoder.mask_token.requires_grad_(False)
        predictor = SmallTransformer(
            encoder.embed_dim,
            encoder.embed_dim,
            dim=ijepa.predictor_dim,
            depth=ijepa.predictor_depth,
            heads=ijepa.predictor_heads,
        )
        self.student = nn.ModuleDict({ENCODER: encoder, _PREDICTOR: predictor})
        self.teacher = calm(encoder)

    @property
    def teacher_encoder(self) -> Encoder:
        """The encoder that is released."""
        return self.teacher

    def train(self, mode: bool = True) -> JointEmbedding:
        """Training mode for the student alone."""
        super().train(mode)
        self.teacher.eval()
        return self

    def sample_masks(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[B, 1 + T, h, w]: what the student does not see, then the target blocks."""
        side = self.config.views.global_size // self.teacher.patch_size
        return sample_blocks(numbers, (side, side), self.config.ijepa, seed=self.config.seed)

    def schedules(self) -> dict[str, Array]:
        """Momentum of the teacher."""
        momentum = self.config.optimizer.teacher_momentum
        return {"teacher_momentum": warmup_cosine(0.0, *momentum, 0, self.config.steps)}

    def update(self, now: Mapping[str, float]) -> None:
        """``teacher <- m * teacher + (1 - m) * student``, m the ``teacher_momentum``."""
        update_ema(self.teacher, self._encoder, now["teacher_momentum"])

    def forward(
        self, batch: Batch, now: Mapping[str, float], lesson: Lesson | None = None
    ) -> dict[str, Tensor]:
        """Mean distance between predicted and given features of the target blocks.

        Patches of a block count alike, blocks count alike, so an image weighs the same in any
        batch.

        Args:
            batch: One global view, and masks as `sample_masks` gives them.
            now: Not used.
            lesson: Not used: images do not meet.

        Returns:
            ``loss`` and each of `losses`; as `FEATURES` what the teacher says of each image.
        """
        del now, lesson
        images = batch.global_views[:, 0]
        num_targets = batch.masks.shape[1] - 1
        grid = (int(batch.masks.shape[2]), int(batch.masks.shape[3]))
        device = images.device
        context, in_context, targets, in_target = (
            part.to(device, non_blocking=True)
            for masks in (~batch.masks[:, 0], batch.masks[:, 1:].flatten(0, 1))
            for part in positions_of(masks)
        )
        whole, said = self._targets(images)  # [B, D], [B, N, D]
        mean = said.mean(0, keepdim=True).expand_as(said)
        seen = encode_visible(self._encoder, images, context, in_context)
        seen = seen[:, -context.shape[1] :].repeat_interleave(num_targets, 0)
        predicted = self.student[_PREDICTOR](
            seen,
            context.repeat_interleave(num_targets, 0),
            targets,
            grid,
            valid=torch.cat([in_context.repeat_interleave(num_targets, 0), in_target], 1),
        )
        wanted, constant = (
            take(part.repeat_interleave(num_targets, 0), targets) for part in (said, mean)
        )
        loss = self._distance(predicted.float(), wanted, in_target)
        return {
            LOSS: loss,
            "ijepa": loss.detach(),
            "ijepa_constant": self._distance(constant, wanted, in_target),
            "target_spread": said.var(0, correction=0).mean().sqrt(),
            FEATURES: whole,
        }

    @property
    def _encoder(self) -> Encoder:
        encoder = self.student[ENCODER]
        assert isinstance(encoder, Encoder)
        return encoder

    @torch.no_grad()
    def _targets(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher says of whole images [B, D], and of their patches [B, N, D].

        Features of a patch are brought to mean 0 and variance 1, as in the published code.
        """
        features = self.teacher(images)
        patches = features.patches.flatten(1, 2).float()
        return features.cls, functional.layer_norm(patches, patches.shape[-1:])

    def _distance(self, predicted: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
        """Mean over features, patches of a block and blocks of [B * T, m, D]."""
        measure = (
            functional.smooth_l1_loss
            if self.config.ijepa.loss == "smooth_l1"
            else functional.mse_loss
        )
        each = measure(predicted, wanted, reduction="none").mean(-1) * valid
        return (each.sum(1) / valid.sum(1)).mean()


def sample_blocks(
    samples: npt.NDArray[np.int64], grid: tuple[int, int], config: IjepaConfig, *, seed: int
) -> npt.NDArray[np.bool_]:
    """Hidden parts and target blocks; those of a sample depend on the seed and its index alone.

    The target blocks of a view share one size and may overlap. What is seen, the context, is a
    larger square block without them; it never is empty, for which all is drawn again.

    Args:
        samples: [B], global sample indices.
        grid: (h, w), at least 4 x 4.
        config: Number, areas and shapes.
        seed: Of the run.

    Returns:
        Bool [B, 1 + T, h, w]: all but the context, then the target blocks.
    """
    masks = np.zeros((len(samples), 1 + config.num_targets, *grid), dtype=np.bool_)
    for row, sample in zip(masks, samples, strict=True):
        random = random_stream(seed, int(sample), MASKS)
        for _ in range(_ATTEMPTS):
            row[...] = False
            size = _block_size(grid, config.target_scale, config.target_aspect, random)
            for target in row[1:]:
                _place(target, size, random)
            _place(row[0], _block_size(grid, config.context_scale, (1.0, 1.0), random), random)
            row[0] = row[1:].any(0) | ~row[0]
            if not row[0].all():
                break
    return masks


def _block_size(
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    random: np.random.Generator,
) -> tuple[int, int]:
    area = random.uniform(*scale) * grid[0] * grid[1]
    ratio = random.uniform(*aspect)
    height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    return min(max(height, 1), grid[0]), min(max(width, 1), grid[1])


def _place(mask: npt.NDArray[np.bool_], size: tuple[int, int], random: np.random.Generator) -> None:
    top = random.integers(mask.shape[0] - size[0] + 1)
    left = random.integers(mask.shape[1] - size[1] + 1)
    mask[top : top + size[0], left : left + size[1]] = True
