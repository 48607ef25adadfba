"""Fewer coils that say nearly the same: virtual coils by singular values.

Shape letters: ``C`` coils, ``V`` virtual coils, ``H`` readout, ``W`` phase encoding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compression_matrix(samples: Tensor, num_coils: int) -> Tensor:
    """The combinations of coils that hold most energy, strongest first.

    Sources: Buehrer et al., MRM 57 (2007); Huang et al., MRI 26 (2008).

    Args:
        samples: Complex ``[..., C, H, W]``, such as the calibration region; whitened coils keep the
            combinations optimal.
        num_coils: V, cut to C.

    Returns:
        Orthonormal rows ``[..., V, C]``.
    """
    flat = samples.flatten(-2)
    vectors = torch.linalg.eigh(flat @ flat.mH)[1]
    return vectors[..., -num_coils:].flip(-1).mH


def combine_coils(matrix: Tensor, kspace: Tensor) -> Tensor:
    """``v_k = sum_c matrix_kc k_c``: compression or whitening.

    Args:
        matrix: ``[..., V, C]``.
        kspace: ``[..., C, H, W]``.

    Returns:
        ``[..., V, H, W]``.
    """
    return (matrix @ kspace.flatten(-2)).unflatten(-1, kspace.shape[-2:])


def compress_readouts(
    hybrid: Tensor, maps: Tensor, weight: Tensor, num_coils: int
) -> tuple[Tensor, Tensor]:
    """Virtual coils of every readout position apart, which need fewer for the same accuracy.

    Where the mask is one of whole lines, positions along the readout are separate problems once the
    readout is transformed, so each may have combinations of its own and they need no alignment.
    They are chosen by the maps, weighted by where signal is. Compare Zhang et al., Coil compression
    for accelerated imaging with Cartesian sampling, MRM 69 (2013), which takes them from the data.

    Args:
        hybrid: Complex ``[..., C, H, W]``: image along ``H``, k-space along ``W``.
        maps: Coil maps ``[..., C, H, W]``.
        weight: Not negative ``[..., H, W]``, such as the energy of a low-resolution image.
        num_coils: V, cut to C.

    Returns:
        Data and maps of virtual coils, ``[..., V, H, W]`` each.
    """
    matrix = readout_matrices(maps, weight, num_coils)
    return combine_readouts(matrix, hybrid), combine_readouts(matrix, maps)


def readout_matrices(maps: Tensor, weight: Tensor, num_coils: int) -> Tensor:
    """The combinations of `compress_readouts`, orthonormal rows ``[..., H, V, C]``."""
    rows = maps.movedim(-3, -2)  # [..., H, C, W]
    vectors = torch.linalg.eigh((rows * weight.unsqueeze(-2)) @ rows.mH)[1]
    return vectors[..., -num_coils:].mH


def combine_readouts(matrix: Tensor, x: Tensor) -> Tensor:
    """``[..., C, H, W]`` to ``[..., V, H, W]`` by `readout_matrices`."""
    return (matrix @ x.movedim(-3, -2)).movedim(-2, -3).contiguous()
