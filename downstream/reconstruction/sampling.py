"""Which points of k-space count as measured, for a scan and for each of its slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.files.kspace import KSpace, Samples
from core_mri.physics.masks import mask_seed, undersampling_mask
from downstream.reconstruction.config import ReconstructConfig

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sampling:
    """The mask of a scan.

    Lines beyond the limits that the header states were never to be measured; they count as measured
    zeros, so that the image keeps the resolution it was acquired at.
    """

    mask: Bools
    """``[phase]`` or ``[readout, phase]``: what may be used of the samples."""
    padding: Bools
    """``[phase]``, lines outside of what the header says was encoded, on both sides."""
    stated: bool
    """Whether the file says which lines were measured."""
    drawn: bool
    """Whether samples were left out on purpose, so that a reference can be made of all."""

    def apply(self, samples: Samples) -> tuple[Samples, Bools]:
        """Samples left, and the mask of this slice.

        Where the file states no mask, lines that hold only zeros were not measured.
        """
        kept = np.where(self.mask, samples, 0)
        if self.mask.ndim > 1:
            return kept, self.mask
        measured = self.mask if self.stated else self.mask & (kept != 0).any(axis=(0, 1))
        return kept, measured | self.padding

    @property
    def acceleration(self) -> float:
        """Points that were encoded over points that were measured."""
        encoded = self.mask[..., ~self.padding]
        return float(encoded.size / max(int(encoded.sum()), 1))


def sampling_of(kspace: KSpace, config: ReconstructConfig) -> Sampling:
    """The mask of the file, else the one that is drawn, else everything that is not zero.

    Raises:
        ConfigError: CONFIG-01 or CONFIG-05 for a mask that cannot be drawn, CONFIG-05 when there is
            no such volume.
    """
    if not 0 <= config.volume < kspace.num_volumes:
        raise ConfigError(
            "CONFIG-05",
            f"{kspace.path}: --volume {config.volume}, but it holds {kspace.num_volumes} "
            f"(0 to {kspace.num_volumes - 1}).",
        )
    width = kspace.shape[3]
    lines = np.arange(width)
    # Only what lies farther out than either limit: a side that is shorter is partial Fourier.
    center = width // 2
    reach = max(center - kspace.header.padding_left, kspace.header.padding_right - 1 - center)
    padding = np.abs(lines - center) > reach if reach > 0 else np.zeros(width, dtype=bool)
    own = kspace.mask(config.volume)
    if own is not None and not own.all():
        return Sampling(own, padding, stated=True, drawn=False)
    stated = own is not None
    if config.mask is None:
        return Sampling(np.ones(width, dtype=bool), padding, stated=stated, drawn=False)
    name = kspace.path.name if kspace.path is not None else ""
    drawn = undersampling_mask(
        config.mask,
        kspace.shape[2:],
        center_fractions=[config.center_fraction],
        accelerations=[config.acceleration],
        seed=mask_seed(name) if config.seed == "FILE" else int(config.seed),
    )
    return Sampling(drawn.numpy().reshape(-1), padding, stated=stated, drawn=True)


def check_finite(kspace: KSpace, index: int, samples: Samples) -> None:
    """Refuse a slice with NaN or infinite samples.

    Raises:
        DataError: DATA-04.
    """
    wrong = int(samples.size - np.isfinite(samples).sum())
    if wrong:
        raise DataError(
            "DATA-04",
            f"{kspace.path}: {wrong} of {samples.size} samples of slice {index} are not finite.",
        )
