"""What turns a slice into features: an encoder, or formulas that need none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from core_mri.off_distribution import FOREGROUND_LEVEL, MIN_FOREGROUND
from data_registry.slices import windowed

if TYPE_CHECKING:
    from torch import nn

    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

Images = Sequence[npt.NDArray[np.float32]]
FORMULAS = "radiomics-1"
"""Digest of `Radiomics`; the number grows when a formula changes."""
_BATCH = 16


class FeatureMaker(Protocol):
    """Makes features of slices."""

    @property
    def digest(self) -> str:
        """Changes with all that the features depend on besides the slices."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def most_slices(self) -> int | None:
        """Slices of a volume at most; None for all."""

    def __call__(self, images: Images, spacing_mm: tuple[float, float]) -> npt.NDArray[np.float32]:
        """[S, D] of slices [H, W] in [0, 1] of one size, with the spacing of rows and columns."""


class EncoderFeatures:
    """Class tokens of an encoder, on squares of the side it was trained at.

    Args:
        model: What `core_mri.load_model` gives; the encoder in it is used.
        name: For people, such as the folder of the weights.
    """

    most_slices = None

    def __init__(self, model: nn.Module, name: str) -> None:
        from core_mri.predictor import Predictor
        from core_mri.weights.fingerprint import weights_fingerprint

        predictor = Predictor(model)  # type: ignore[arg-type]
        self.encoder, self.image_size = predictor.encoder.eval(), predictor.image_size
        self.name = name
        key = f"{weights_fingerprint(self.encoder)} {self.image_size}"
        self.digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.width = int(self([np.zeros((16, 16), np.float32)], (1.0, 1.0)).shape[1])

    def __call__(self, images: Images, spacing_mm: tuple[float, float]) -> npt.NDArray[np.float32]:
        """As `FeatureMaker`; spacing is not used."""
        import torch

        from core_mri.slice_grid import image_to_square

        del spacing_mm
        device = next(self.encoder.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                batch = image_to_square(np.stack(images[start : start + _BATCH]), self.image_size)
                parts.append(self.encoder(batch.to(device)).cls.float().cpu().numpy())
        return np.concatenate(parts)


class Radiomics:
    """`radiomics.radiomic_features`, of some slices of each volume as they take their time."""

    digest = FORMULAS
    name = "radiomic features"
    most_slices = 16

    @property
    def width(self) -> int:
        """D."""
        from data_registry.similarity.radiomics import NAMES

        return len(NAMES)

    def __call__(self, images: Images, spacing_mm: tuple[float, float]) -> npt.NDArray[np.float32]:
        """As `FeatureMaker`."""
        from data_registry.similarity.radiomics import radiomic_features

        return np.stack([radiomic_features(image, spacing_mm) for image in images])


def foreground_slices(registry: Registry, row: VolumeRow) -> list[npt.NDArray[np.float32]]:
    """The slices of a volume that show something, in [0, 1] by its window; all when none does."""
    voxels = registry.read(row).array
    images = [windowed(part, row.window_low, row.window_high) for part in voxels]
    shown = [image for image in images if (image > FOREGROUND_LEVEL).mean() >= MIN_FOREGROUND]
    return shown or images
