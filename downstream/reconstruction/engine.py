"""One slice: samples and mask in, magnitude out, by the source and the backend that were asked.

With every image goes the residual of the measured samples; on demand also a map of its errors, from
two reconstructions that have half of the lines each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.files.kspace import Samples
from core_mri.kspace_inference import network_image
from core_mri.kspace_sampling import Bools, Sampling
from core_mri.models.reconstruction import Reconstructor
from core_mri.physics import classical
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import fft2c, ifft2c
from core_mri.physics.partial_fourier import homodyne, line_extent, pocs
from core_mri.physics.preparation import center_crop
from core_mri.physics.residual import magnitude_residual
from downstream.reconstruction.config import ReconstructConfig
from downstream.reconstruction.halves import error_map, halves

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slice:
    """A reconstructed slice."""

    image: Image
    """Magnitude ``[rows, columns]``."""
    weight: float | None
    """Regularization over the scale of the data."""
    residual: float | None
    """Of the measured samples (`core_mri.physics.classical.Encoded.residual`); None without a
    center that coil maps can be found from."""
    error: Image | None
    """Estimated errors, of the size of the image, where asked for."""
    wall_s: float
    """Seconds, with the finding of the maps; residual of magnitudes and error map not in it."""
    cpu_s: float
    """Processor seconds of the thread that did it; those of a BART process are not in it."""


@dataclass(frozen=True)
class Solver:
    """What is the same for all slices of a scan."""

    config: ReconstructConfig
    sampling: Sampling
    size: tuple[int, int]
    """Rows and columns of the image."""
    device: str
    network: Reconstructor | None = None
    """The network, where the source is one."""

    @torch.inference_mode()
    def reconstruct_slice(self, samples: Samples, name: str) -> Slice:
        """Reconstruct one slice.

        Args:
            samples: ``[coils, readout, phase]``, all that were read.
            name: File and slice, for messages.

        Raises:
            ConfigError: CONFIG-06 for a backend that is not installed.
            DataError: DATA-21 without the center that coil maps need.
            WeightsError: WEIGHTS-11 for an image that the network cannot take.
        """
        kept, mask = self.sampling.apply(samples)
        wall, cpu = time.perf_counter(), time.thread_time()
        image, weight, residual = self._solve(kept, mask, name)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        error = None
        if self.config.error_map:
            padding = mask & self.sampling.padding
            parts = [
                self._solve(np.where(half, kept, 0), half | padding, name)[0]
                for half in halves(mask & ~padding)
            ]
            error = error_map(image, *parts)
        if residual is None:
            residual = self._residual(kept, mask, image)
        return Slice(image, weight, residual, error, wall, cpu)

    def _solve(
        self, samples: Samples, mask: Bools, name: str
    ) -> tuple[Image, float | None, float | None]:
        """Image, weight and, where the solver knows it, residual."""
        config, weight, residual = self.config, None, None
        if not samples.any():
            return np.zeros(self.size, np.float32), None, 0.0
        if self.network is not None:
            return self._network(samples, mask, name), None, None
        lines, kspace = self._tensors(samples, mask)
        if config.source == "grappa":
            from downstream.reconstruction.grappa import grappa

            image = _combined(torch.from_numpy(grappa(samples, mask, name)), lines, config)
        elif config.source == "zero-filled":
            image = _combined(kspace, lines, config)
        else:
            try:
                if config.backend == "torch":
                    done = classical.reconstruct(
                        kspace,
                        lines,
                        config.source,  # type: ignore[arg-type]
                        weight=config.weight,
                        num_iterations=config.iterations,
                        maps=config.maps,
                        num_rows=self.size[0],
                    )
                    image, weight = done.image, float(done.weight)  # type: ignore[arg-type]
                    residual = float(done.residual)  # type: ignore[arg-type]
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
        magnitude = center_crop(image.abs(), self.size)
        return magnitude.to(torch.float32).cpu().numpy(), weight, residual

    def _network(self, samples: Samples, mask: Bools, name: str) -> Image:
        assert self.network is not None
        if not self.network.padding_measured:
            mask = mask & self.sampling.measured_only(samples)
        return network_image(
            self.network, samples, mask, size=self.size, num_low=self.sampling.num_low, name=name
        )

    def _residual(self, samples: Samples, mask: Bools, image: Image) -> float | None:
        lines, kspace = self._tensors(samples, mask)
        magnitude = torch.from_numpy(image).to(self.device)
        try:
            return float(magnitude_residual(kspace, lines, magnitude))
        except ValueError:
            return None

    def _tensors(self, samples: Samples, mask: Bools) -> tuple[Tensor, Tensor]:
        """Mask and samples on the device."""
        lines, kspace = (torch.from_numpy(np.ascontiguousarray(x)) for x in (mask, samples))
        return lines.to(self.device), kspace.to(self.device)


def _combined(kspace: Tensor, lines: Tensor, config: ReconstructConfig) -> Tensor:
    """Coil images, with partial Fourier where asked, by root sum of squares."""
    coils = ifft2c(kspace) if config.partial_fourier == "none" else _partial(kspace, lines, config)
    return root_sum_of_squares(coils, -3)


def _partial(kspace: Tensor, lines: Tensor, config: ReconstructConfig) -> Tensor:
    extent = line_extent(lines if lines.ndim == 1 else lines.any(0))
    return (homodyne if config.partial_fourier == "homodyne" else pocs)(kspace, extent)
