from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from core_mri.physics import fft2c, fftnc, ifft2c, ifftnc

SHAPES = [(8, 6), (7, 5), (5, 8), (9, 9), (1, 7), (640, 372)]


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


class TestProperties:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_inverse(self, shape: tuple[int, int]) -> None:
        x = draw((2, 3, *shape))
        torch.testing.assert_close(ifft2c(fft2c(x)), x)
        torch.testing.assert_close(fft2c(ifft2c(x)), x)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_adjoint_and_energy(self, shape: tuple[int, int]) -> None:
        """<F x, y> = <x, F^H y>, and |F x| = |x| (Parseval)."""
        x, y = draw(shape, 1), draw(shape, 2)
        left = torch.vdot(fft2c(x).ravel(), y.ravel())
        right = torch.vdot(x.ravel(), ifft2c(y).ravel())
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(fft2c(x).norm(), x.norm())

    @pytest.mark.parametrize("shape", SHAPES)
    def test_center_is_at_half(self, shape: tuple[int, int]) -> None:
        """A point in the middle has flat k-space, and a flat image is a point in the middle."""
        point = torch.zeros(shape, dtype=torch.complex128)
        point[shape[0] // 2, shape[1] // 2] = 1
        flat = torch.full_like(point, (shape[0] * shape[1]) ** -0.5)
        torch.testing.assert_close(fft2c(point), flat)
        torch.testing.assert_close(fft2c(flat), point)

    @pytest.mark.parametrize("n", [8, 9])
    def test_definition(self, n: int) -> None:
        """X_k = sum_j x_j exp(-2 pi i (k - c)(j - c) / n) / sqrt(n), c = n // 2."""
        k = np.arange(n) - n // 2
        matrix = torch.from_numpy(np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n))
        x = draw((n,), 3)
        torch.testing.assert_close(fftnc(x, (-1,)), matrix @ x)
        torch.testing.assert_close(ifftnc(x, (0,)), matrix.conj().T @ x)

    def test_dimensions_are_independent(self) -> None:
        x = draw((3, 6, 7))
        torch.testing.assert_close(fftnc(fftnc(x, (1,)), (2,)), fft2c(x))
        torch.testing.assert_close(fft2c(x)[1], fft2c(x[1]))

    def test_gradient(self) -> None:
        x = draw((4, 5)).requires_grad_()
        assert torch.autograd.gradcheck(fft2c, (x,))
        assert torch.autograd.gradcheck(ifft2c, (x,))

    def test_real_input_and_types(self) -> None:
        x = torch.rand(4, 6)
        torch.testing.assert_close(fft2c(x), fft2c(x.to(torch.complex64)))
        assert fft2c(x).dtype == torch.complex64


class TestAgainstFastMri:
    def test_gold_values(self, gold: dict[str, Any], maker: ModuleType) -> None:
        assert len(gold["fft"]) == len(maker.SHAPES)
        for case in gold["fft"]:
            x = torch.from_numpy(maker.arrays(case["seed"], tuple(case["shape"])))
            for name, function in (("fft2c", fft2c), ("ifft2c", ifft2c)):
                expected = torch.tensor(case[name], dtype=torch.float64)
                got = torch.view_as_real(function(x))
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
