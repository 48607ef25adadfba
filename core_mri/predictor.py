"""`Predictor`: a volume in, embeddings or a mask out, on the voxels of the volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import ConfigError, WeightsError
from core_mri.models.encoder import Encoder
from core_mri.models.segmenter import Segmenter
from core_mri.preprocess import Prepared, Preprocess
from core_mri.slice_grid import image_to_square, square_to_classes
from core_mri.volume import Volume


class Embedding(NamedTuple):
    """Frozen features of a volume; S slices across its plane of acquisition."""

    cls: npt.NDArray[np.float32]
    """[S, D], one vector a slice."""
    patches: npt.NDArray[np.float32]
    """[S, h, w, D], on the padded square of each slice."""


class Predictor:
    """Runs a model over volumes; geometry is kept.

    Args:
        model: An `Encoder` or a `Segmenter`, as `core_mri.load_model` returns it.
        image_size: Side of the square each slice is resized to, pixels; by default the side the
            model was trained at.
        batch_size: Slices at a time; bounds the memory.

    Raises:
        ConfigError: CONFIG-05 when `image_size` is no multiple of the patch size.
    """

    def __init__(
        self, model: Encoder | Segmenter, *, image_size: int | None = None, batch_size: int = 16
    ) -> None:
        self.model = model.eval()
        self.encoder = model.encoder if isinstance(model, Segmenter) else model
        trained = model.image_size if isinstance(model, Segmenter) else model.config.image_size
        self.image_size = image_size or trained
        self.batch_size = batch_size
        if self.image_size % self.encoder.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"image_size {self.image_size} is no multiple of the patch size "
                f"{self.encoder.patch_size}.",
            )

    @torch.inference_mode()
    def embed(self, volume: Volume) -> Embedding:
        """Features of every slice, slices ordered as `core_mri.volume.SLICE_ORIENTATION` says.

        Raises:
            DataError: DATA-04 or DATA-05 when voxels are not finite or all equal.
            GeometryError: GEOMETRY-02 when the volume has a fourth dimension.
        """
        features = [self.encoder(images) for images in self._batches(Preprocess().apply(volume))]
        return Embedding(
            torch.cat([f.cls for f in features]).float().cpu().numpy(),
            torch.cat([f.patches for f in features]).float().cpu().numpy(),
        )

    @torch.inference_mode()
    def segment(self, volume: Volume) -> Volume:
        """The class of every voxel, on the grid of `volume`.

        Returns:
            A label volume, uint8; class names are ``predictor.model.labels``.

        Raises:
            WeightsError: WEIGHTS-02 when the model is an encoder without a segmentation head.
            DataError: As :meth:`embed`.
        """
        if not isinstance(self.model, Segmenter):
            raise WeightsError(
                "WEIGHTS-02",
                "these weights hold an encoder without a segmentation head.",
                fix="Fine-tune it first: core-mri finetune CONFIG.",
            )
        prepared = Preprocess().apply(volume)
        rows, columns = prepared.array.shape[1:]
        classes = [
            square_to_classes(self.model(images), rows, columns)
            for images in self._batches(prepared)
        ]
        return prepared.restore(np.concatenate(classes))

    def _batches(self, prepared: Prepared) -> Iterator[Tensor]:
        """Images [B, 1, N, N] in [0, 1] on the model's device."""
        slices = cast("npt.NDArray[np.float32]", prepared.array)
        device = next(self.encoder.parameters()).device
        for start in range(0, len(slices), self.batch_size):
            batch = slices[start : start + self.batch_size]
            yield image_to_square(batch, self.image_size).to(device)
