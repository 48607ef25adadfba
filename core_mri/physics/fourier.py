"""Centered, orthonormal Fourier transforms: the one convention of this project.

    X = fftshift( FFT( ifftshift(x) ) ) / sqrt(N)

The zero frequency and the center of the image lie at index ``n // 2`` of each axis, n even or odd.
The two shifts differ for odd n: `ifftshift` rolls by ``(n + 1) // 2``, `fftshift` by ``n // 2``;
using one for both moves the image by a voxel. Orthonormal scaling makes the transform unitary, so
that its adjoint is its inverse and energy is kept (Parseval). Same as ``fastmri.fft2c_new``
(facebookresearch/fastMRI, `fastmri/fftc.py`), on complex tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fft2c(x: Tensor) -> Tensor:
    """Image to k-space over the last two dimensions.

    Args:
        x: ``[..., H, W]``, complex, or real, which becomes complex.

    Returns:
        ``[..., H, W]``, complex.
    """
    return fftnc(x, (-2, -1))


def ifft2c(x: Tensor) -> Tensor:
    """K-space to image over the last two dimensions; inverse and adjoint of `fft2c`.

    Args:
        x: ``[..., H, W]``, complex, or real, which becomes complex.

    Returns:
        ``[..., H, W]``, complex.
    """
    return ifftnc(x, (-2, -1))


def fftnc(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Centered orthonormal FFT over any dimensions.

    Args:
        x: Any shape, complex or real.
        dims: Dimensions to transform, such as ``(-1,)`` for the readout alone.
    """
    dims = tuple(dims)
    shifted = torch.fft.ifftshift(x, dim=dims)
    return torch.fft.fftshift(torch.fft.fftn(shifted, dim=dims, norm="ortho"), dim=dims)


def ifftnc(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Centered orthonormal inverse FFT over any dimensions; inverse and adjoint of `fftnc`.

    Args:
        x: Any shape, complex or real.
        dims: Dimensions to transform.
    """
    dims = tuple(dims)
    shifted = torch.fft.ifftshift(x, dim=dims)
    return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=dims, norm="ortho"), dim=dims)
