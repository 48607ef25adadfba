"""Which points of k-space count as measured, for a scan and for each of its slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.files.kspace import KSpace, Samples
from core_mri.physics.masks import UndersamplingMask
from core_mri.physics.preparation import crop_size

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
    encoded: Bools
    """``[phase]``, lines within the limits of the header; fewer than ``~padding`` where one side is
    shorter."""
    stated: bool
    """Whether the file says which lines were measured."""
    drawn: bool
    """Whether samples were left out on purpose, so that a reference can be made of all."""
    num_low: int = 0
    """Lines of the center that were kept on purpose; 0 where a mask was not drawn."""

    def apply(self, samples: Samples) -> tuple[Samples, Bools]:
        """Samples left, and the mask of this slice.

        Where the file states no mask, lines that hold only zeros were not measured.
        """
        kept = np.where(self.mask, samples, 0)
        if self.mask.ndim > 1:
            return kept, self.mask
        measured = self.mask if self.stated else self.mask & (kept != 0).any(axis=(0, 1))
        return kept, measured | self.padding

    def measured_only(self, kept: Samples) -> Bools:
        """The mask as fastMRI gives it to its networks: padding counts as not measured.

        Source: facebookresearch/fastMRI, `apply_mask` with its padding.

        Args:
            kept: Samples of a slice, of `apply`.
        """
        if self.mask.ndim > 1:
            return self.mask
        told = self.stated or self.drawn
        return self.encoded & (self.mask if told else (kept != 0).any(axis=(0, 1)))

    @property
    def acceleration(self) -> float:
        """Points that were encoded over points that were measured."""
        encoded = self.mask[..., ~self.padding]
        return float(encoded.size / max(int(encoded.sum()), 1))


def own_sampling(kspace: KSpace, volume: int = 0) -> Sampling:
    """The mask of the file, else everything that is not zero.

    Raises:
        ConfigError: CONFIG-05 when there is no such volume.
    """
    if not 0 <= volume < kspace.num_volumes:
        raise ConfigError(
            "CONFIG-05",
            f"{_name(kspace)}: volume {volume} was asked for, but it holds {kspace.num_volumes} "
            f"(0 to {kspace.num_volumes - 1}).",
        )
    width = kspace.shape[3]
    lines = np.arange(width)
    first, end = kspace.header.padding_left, kspace.header.padding_right
    # Only what lies farther out than either limit: a side that is shorter is partial Fourier.
    center = width // 2
    reach = max(center - first, end - 1 - center)
    padding = np.abs(lines - center) > reach if reach > 0 else np.zeros(width, dtype=bool)
    encoded = (lines >= first) & (lines < end) if reach > 0 else ~padding
    own = kspace.mask(volume)
    mask = np.ones(width, dtype=bool) if own is None else own
    return Sampling(mask, padding, encoded, stated=own is not None, drawn=False)


def drawn_sampling(own: Sampling, drawn: UndersamplingMask) -> Sampling:
    """A fully sampled scan, undersampled on purpose."""
    return Sampling(
        drawn.mask.numpy().reshape(-1),
        own.padding,
        own.encoded,
        stated=own.stated,
        drawn=True,
        num_low=drawn.num_low_frequencies,
    )


def image_size(kspace: KSpace) -> tuple[int, int]:
    """Rows and columns of the image: the part of the encoded field of view that the header asks.

    fastMRI: `core_mri.physics.crop_size` of the reconstruction matrix. Else by the fields of view
    in mm; voxels are cut away, never interpolated.
    """
    _, _, height, width = kspace.shape
    header = kspace.header
    if kspace.layout == "fastmri":
        rows, columns = crop_size((header.recon_matrix[0], header.recon_matrix[1]), width)
        return min(rows, height), min(columns, width)
    kept = []
    for axis, stored in enumerate((height, width)):
        encoded, wanted = header.encoded_fov_mm[axis], header.recon_fov_mm[axis]
        part = wanted / encoded if 0 < wanted < encoded else 1.0
        kept.append(max(round(stored * part), 1))
    return kept[0], kept[1]


def check_finite(kspace: KSpace, index: int, samples: Samples) -> None:
    """Refuse a slice with NaN or infinite samples.

    Raises:
        DataError: DATA-04.
    """
    wrong = int(samples.size - np.isfinite(samples).sum())
    if wrong:
        raise DataError(
            "DATA-04",
            f"{_name(kspace)}: {wrong} of {samples.size} samples of slice {index} are not finite.",
        )


def _name(kspace: KSpace) -> str:
    return "k-space" if kspace.path is None else str(kspace.path)
