"""`Sense`: what an undersampled scan with several coils measures of an image, and its adjoint.

    A x = M F (S_c x)          A^H y = sum_c conj(S_c) F^-1 (M y_c)

S_c coil maps, F the centered orthonormal Fourier transform, M the mask. Source: Pruessmann et al.,
SENSE, MRM 42 (1999); Pruessmann et al., Advances in sensitivity encoding, MRM 46 (2001).

Shape letters: ``C`` coils, ``H`` readout, ``W`` phase encoding; ``...`` any batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from core_mri.physics.coils import coil_combine, coil_expand
from core_mri.physics.fourier import fftnc, ifftnc

IN_CACHE = 2**17
"""Complex numbers that a CPU works on at a time: 1 MiB, about what the cache of a core holds."""


class Sense:
    """The encoding of a Cartesian scan, on the device of its maps; gradients flow through it.

    Args:
        maps: Coil maps, complex ``[..., C, H, W]``.
        mask: Bool ``[..., H or 1, W]``, points that were measured; None where all were.
        axes: Dimensions that are Fourier encoded: ``(-2, -1)``, or ``(-1,)`` for data whose readout
            is an image already, which needs a mask of whole lines.

    Raises:
        ValueError: A mask that does not fit, or that picks single points of a readout that is not
            Fourier encoded.
    """

    def __init__(
        self, maps: Tensor, mask: Tensor | None = None, *, axes: Sequence[int] = (-2, -1)
    ) -> None:
        height, width = maps.shape[-2:]
        if mask is not None and not (
            mask.shape[-1] == width and mask.shape[-2] in (1, height if -2 in axes else 1)
        ):
            raise ValueError(
                f"a mask of {tuple(mask.shape)} does not fit maps of {tuple(maps.shape)} that are "
                f"encoded along {tuple(axes)}"
            )
        self.maps = maps
        self._conjugate = maps.conj().resolve_conj()
        self.axes = tuple(axes)
        self.mask = None if mask is None else mask.unsqueeze(-3)
        # F^H M F is a circular convolution, which commutes with the two shifts of the centered
        # transform and needs no transform along a dimension in which the mask is constant.
        self._normal_axes: tuple[int, ...] = ()
        if self.mask is not None:
            self._normal_axes = (-2, -1) if self.mask.shape[-2] > 1 else (-1,)
            self._corner_mask = torch.fft.ifftshift(self.mask.to(maps.dtype), dim=self._normal_axes)

    def forward(self, image: Tensor) -> Tensor:
        """``A x``.

        Args:
            image: Complex ``[..., H, W]``.

        Returns:
            ``[..., C, H, W]``, zero where nothing is measured.
        """
        samples = fftnc(coil_expand(image, self.maps), self.axes)
        return samples if self.mask is None else samples * self.mask

    def adjoint(self, kspace: Tensor) -> Tensor:
        """``A^H y``.

        Args:
            kspace: Complex ``[..., C, H, W]``.

        Returns:
            ``[..., H, W]``.
        """
        samples = kspace if self.mask is None else kspace * self.mask
        return coil_combine(ifftnc(samples, self.axes), self.maps)

    def normal(self, image: Tensor) -> Tensor:
        """``A^H A x`` at less cost than one after the other.

        Args:
            image: Complex ``[..., H, W]``.

        Returns:
            ``[..., H, W]``.
        """
        total: Tensor | None = None
        for maps, conjugate in self._in_cache():
            coils = coil_expand(image, maps)
            if self._normal_axes:
                spectrum = torch.fft.fftn(coils, dim=self._normal_axes).mul_(self._corner_mask)
                coils = torch.fft.ifftn(spectrum, dim=self._normal_axes)
            parts = coils.mul_(conjugate)
            part = parts.sum(-3) if parts.shape[-3] > 1 else parts.squeeze(-3)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _in_cache(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Maps and their conjugates, of all coils or, on a CPU, of as many as its cache holds."""
        count = self.maps.shape[-3]
        if self.maps.device.type == "cpu":
            count = max(1, IN_CACHE * count // max(1, self.maps.numel()))
        return zip(self.maps.split(count, -3), self._conjugate.split(count, -3), strict=True)


def operator_norm(sense: Sense, *, num_iterations: int = 30, seed: int = 0) -> Tensor:
    """The largest singular value of A, by power iteration on ``A^H A``.

    At most 1 for maps with ``sum_c |S_c|^2 <= 1``, as those of `core_mri.physics.sensitivity`.

    Args:
        sense: The operator.
        num_iterations: Steps; the estimate grows towards the value from below.
        seed: Of the image it starts from.

    Returns:
        Real ``[...]``, one a batch entry.
    """
    maps = sense.maps
    generator = torch.Generator().manual_seed(seed)
    shape = (*maps.shape[:-3], *maps.shape[-2:])
    x = torch.randn(shape, dtype=maps.dtype, generator=generator).to(maps.device)
    for _ in range(num_iterations):
        x = sense.normal(x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True))
    return torch.linalg.vector_norm(x, dim=(-2, -1)).sqrt()
