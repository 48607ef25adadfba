"""One slice: samples and mask in, magnitude out, by the source and the backend that were asked."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.files.kspace import Samples
from core_mri.physics import classical
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import fft2c, ifft2c
from core_mri.physics.partial_fourier import homodyne, line_extent, pocs
from core_mri.physics.preparation import center_crop
from downstream.reconstruction.config import ReconstructConfig

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slice:
    """A reconstructed slice."""

    image: Image
    """Magnitude ``[rows, phase]``."""
    weight: float | None
    """Regularization over the scale of the data."""
    wall_s: float
    """Seconds, with the finding of the maps."""
    cpu_s: float
    """Processor seconds of the thread that did it; those of a BART process are not in it."""


@torch.inference_mode()
def reconstruct_slice(
    samples: Samples,
    mask: npt.NDArray[np.bool_],
    config: ReconstructConfig,
    *,
    num_rows: int | None = None,
    device: str = "cpu",
    name: str = "",
) -> Slice:
    """Reconstruct one slice.

    Args:
        samples: ``[coils, readout, phase]``, zero where not measured.
        mask: ``[phase]`` or ``[readout, phase]``.
        config: Source, backend and their settings.
        num_rows: Rows of the image that are wanted, the middle of the readout; all by default.
        device: Where torch computes.
        name: File and slice, for messages.

    Raises:
        ConfigError: CONFIG-06 for a backend that is not installed.
        DataError: DATA-21 without the center that coil maps need.
    """
    wall, cpu = time.perf_counter(), time.thread_time()
    weight: float | None = None
    lines = torch.from_numpy(np.ascontiguousarray(mask))
    kspace = torch.from_numpy(np.ascontiguousarray(samples)).to(device)
    if not kspace.any():
        image = kspace.real.sum(0)
    elif config.source == "grappa":
        from downstream.reconstruction.grappa import grappa

        image = _combined(torch.from_numpy(grappa(samples, mask, name)), lines, config)
    elif config.source == "zero-filled":
        image = _combined(kspace, lines, config)
    else:
        try:
            if config.backend == "torch":
                done = classical.reconstruct(
                    kspace,
                    lines.to(device),
                    config.source,  # type: ignore[arg-type]
                    weight=config.weight,
                    num_iterations=config.iterations,
                    maps=config.maps,
                    num_rows=num_rows,
                )
                image, weight = done.image, float(done.weight)  # type: ignore[arg-type]
            else:
                from downstream.reconstruction.backends import solve

                image, weight = solve(kspace, lines, config)
        except ValueError as error:
            raise DataError(
                "DATA-21",
                f"{name}: {error}.",
                fix="Use zero-filled, or a mask with a fully sampled center.",
            ) from None
        if config.partial_fourier != "none":
            image = _partial(fft2c(image), lines, config)
    rows = image.shape[-2] if num_rows is None else num_rows
    image = center_crop(image, (rows, image.shape[-1]))
    magnitude = image.abs().to(torch.float32).cpu().numpy()
    return Slice(magnitude, weight, time.perf_counter() - wall, time.thread_time() - cpu)


def _combined(kspace: Tensor, lines: Tensor, config: ReconstructConfig) -> Tensor:
    """Coil images, with partial Fourier where asked, by root sum of squares."""
    coils = ifft2c(kspace) if config.partial_fourier == "none" else _partial(kspace, lines, config)
    return root_sum_of_squares(coils, -3)


def _partial(kspace: Tensor, lines: Tensor, config: ReconstructConfig) -> Tensor:
    extent = line_extent(lines if lines.ndim == 1 else lines.any(0))
    return (homodyne if config.partial_fourier == "homodyne" else pocs)(kspace, extent)
