"""MAE: hide most of a view from the encoder, and let a small decoder paint it (arXiv 2111.06377).

Shapes: B images of this worker, G global views, p side of a patch, N patches, n of them seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from pretrain.config import PretrainConfig
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

_DECODER = "decoder"


class MaskedAutoencoder(Objective):
    """Encoder on the visible patches alone, decoder, squared error on the hidden pixels.

    ``mae_constant`` is the loss of predicting one constant everywhere: with normalized pixels the
    part of hidden patches that are not flat. What the loss is below it was learned.

    Args:
        config: Of the run; weights are random from torch's global generator.
    """

    losses = ("mae", "mae_constant")
    judged_features = False  # nothing trains the class token

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        mae = config.mae
        encoder = build_encoder(config, drop_path=config.drop_path)
        encoder.mask_token.requires_grad_(False)
        decoder = SmallTransformer(
            encoder.embed_dim,
            encoder.patch_size**2,
            dim=mae.decoder_dim,
            depth=mae.decoder_depth,
            heads=mae.decoder_heads,
        )
        self.student = nn.ModuleDict({ENCODER: encoder, _DECODER: decoder})

    @property
    def teacher_encoder(self) -> Encoder:
        """A copy of the encoder, as there is no teacher."""
        return calm(self._encoder)

    def sample_masks(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Masks [B, G, h, w] of single patches; all have the same number."""
        config = self.config
        side = config.views.global_size // self._encoder.patch_size
        return random_masks(
            numbers,
            (side, side),
            config.mae.mask_ratio,
            seed=config.seed,
            num_views=config.views.num_global,
        )

    def schedules(self) -> dict[str, Array]:
        """None of its own."""
        return {}

    def update(self, now: Mapping[str, float]) -> None:
        """Nothing follows the student."""
        del now

    def forward(
        self, batch: Batch, now: Mapping[str, float], lesson: Lesson | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error on the hidden patches of all global views.

        Args:
            batch: Views and masks, M = G.
            now: Not used.
            lesson: Not used: images do not meet.

        Returns:
            ``loss``, ``mae``, ``mae_constant``; as `FEATURES` the class tokens of the first views,
            of what the encoder saw of them.
        """
        del now, lesson
        images = batch.global_views.flatten(0, 1)
        hidden = batch.masks.flatten(0, 1)
        device = images.device
        kept, masked = (
            positions_of(masks)[0].to(device, non_blocking=True) for masks in (~hidden, hidden)
        )
        tokens = encode_visible(self._encoder, images, kept)
        grid = (int(hidden.shape[1]), int(hidden.shape[2]))
        predicted = self.student[_DECODER](tokens, kept, masked, grid).float()
        patches = patchify(images, self._encoder.patch_size)
        if self.config.mae.normalize_pixels:
            patches = normalize(patches)
        targets = take(patches, masked)
        loss = (predicted - targets).square().mean()
        return {
            LOSS: loss,
            "mae": loss.detach(),
            "mae_constant": targets.var(correction=0),
            FEATURES: tokens[:: batch.global_views.shape[1], 0].detach(),
        }

    @property
    def _encoder(self) -> Encoder:
        encoder = self.student[ENCODER]
        assert isinstance(encoder, Encoder)
        return encoder


def random_masks(
    samples: npt.NDArray[np.int64],
    grid: tuple[int, int],
    ratio: float,
    *,
    seed: int,
    num_views: int = 1,
) -> npt.NDArray[np.bool_]:
    """Bool [B, V, h, w], True is hidden: ``N - floor((1 - ratio) N)`` patches drawn at random.

    Those of a sample depend on the seed and its global index alone. At least one patch is seen.

    Args:
        samples: [B], global sample indices.
        grid: (h, w).
        ratio: Hidden part.
        seed: Of the run.
        num_views: V.
    """
    num = grid[0] * grid[1]
    seen = max(1, int(num * (1 - ratio) + 1e-9))
    masks = np.ones((len(samples), num_views, num), dtype=np.bool_)
    for row, sample in zip(masks, samples, strict=True):
        random = random_stream(seed, int(sample), MASKS)
        for view in row:
            view[random.permutation(num)[:seen]] = False
    return masks.reshape(len(samples), num_views, *grid)


def patchify(images: Tensor, size: int) -> Tensor:
    """Images [B, 1, h * p, w * p] as patches [B, h * w, p * p], row by row."""
    rows = images[:, 0].unflatten(1, (-1, size)).unflatten(3, (-1, size))  # [B, h, p, w, p]
    return rows.transpose(2, 3).flatten(3).flatten(1, 2)


def normalize(patches: Tensor) -> Tensor:
    """``(x - mean) / sqrt(var + 1e-6)`` of each patch [B, N, p * p]."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
