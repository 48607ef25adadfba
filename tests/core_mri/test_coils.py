from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from core_mri.physics import (
    coil_combine,
    coil_expand,
    emulate_single_coil,
    emulated_single_coil_weights,
    fft2c,
    ifft2c,
    root_sum_of_squares,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def scan(num_coils: int = 4, num_slices: int = 3, size: int = 24) -> torch.Tensor:
    """K-space ``[slices, coils, H, W]`` of an object under smooth sensitivities."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    angle = torch.arange(num_coils) * 2 * torch.pi / num_coils
    far = (x[None] - 1.3 * angle.cos()[:, None, None]) ** 2
    far = far + (y[None] - 1.3 * angle.sin()[:, None, None]) ** 2
    maps = torch.polar(torch.exp(-far / 3), (angle[:, None, None] + 0.5 * x[None]))
    body = ((x**2 + y**2) < 0.7).double() * (1 + 0.3 * torch.sin(4 * x))
    slices = torch.stack([body * (0.5 + k) for k in range(num_slices)])
    return fft2c((slices[:, None] * maps[None]).to(torch.complex128))


def misfit(kspace: torch.Tensor, weights: torch.Tensor) -> float:
    """The error that the weights minimize, relative."""
    target = root_sum_of_squares(ifft2c(kspace), 1)
    found = ifft2c(emulate_single_coil(kspace, weights)).abs()
    return float((found - target).norm() / target.norm())


class TestRootSumOfSquares:
    def test_definition_permutation_and_one_coil(self) -> None:
        x = draw(3, 5, 6)
        expected = torch.linalg.vector_norm(x, dim=0)
        torch.testing.assert_close(root_sum_of_squares(x, 0), expected)
        torch.testing.assert_close(root_sum_of_squares(x[[2, 0, 1]], 0), expected)
        torch.testing.assert_close(root_sum_of_squares(x[:1], 0), x[0].abs())

    def test_gradient_in_air_is_zero(self) -> None:
        x = torch.zeros(2, 3, dtype=torch.complex64)
        x[:, 0] = 3 + 4j
        x.requires_grad_()
        root_sum_of_squares(x, 0).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(torch.view_as_real(x.grad)).all()
        assert (x.grad[:, 1:] == 0).all()
        assert (x.grad[:, 0] != 0).all()

    def test_gold_values(self, gold: dict[str, Any], maker: ModuleType) -> None:
        for case in gold["fft"]:
            x = torch.from_numpy(maker.arrays(case["seed"], tuple(case["shape"])))
            expected = torch.tensor(case["rss"], dtype=torch.float64)
            torch.testing.assert_close(root_sum_of_squares(x, 0), expected, rtol=0, atol=1e-12)


class TestSense:
    def test_adjoint(self) -> None:
        maps, image, coils = draw(4, 5, 6, seed=1), draw(2, 5, 6, seed=2), draw(2, 4, 5, 6, seed=3)
        left = torch.vdot(coil_expand(image, maps).ravel(), coils.ravel())
        right = torch.vdot(image.ravel(), coil_combine(coils, maps).ravel())
        torch.testing.assert_close(left, right)

    def test_normalized_maps_give_the_image_back(self) -> None:
        maps = draw(4, 5, 6)
        maps = maps / root_sum_of_squares(maps, 0)
        image = draw(5, 6, seed=9)
        torch.testing.assert_close(coil_combine(coil_expand(image, maps), maps), image)


class TestEmulatedSingleCoil:
    def fit(self, kspace: torch.Tensor, **options: int) -> torch.Tensor:
        return emulated_single_coil_weights(lambda i: kspace[i], len(kspace), **options)

    def test_one_coil_stays_as_it_is(self) -> None:
        kspace = scan(1)
        weights = self.fit(kspace)
        torch.testing.assert_close(weights, torch.ones(1, dtype=torch.complex128))
        torch.testing.assert_close(emulate_single_coil(kspace, weights), kspace[:, 0])

    def test_better_than_any_coil_and_than_equal_weights(self) -> None:
        kspace = scan()
        best = misfit(kspace, self.fit(kspace))
        assert best < 0.2
        for coil in range(4):
            one = torch.zeros(4, dtype=torch.complex128)
            target = root_sum_of_squares(ifft2c(kspace), 1)
            alone = ifft2c(kspace)[:, coil].abs()
            one[coil] = (alone * target).sum() / (alone**2).sum()  # its best scale
            assert best < misfit(kspace, one)

    def test_no_small_change_is_better(self) -> None:
        kspace = scan()
        weights = self.fit(kspace, num_iterations=500)
        best = misfit(kspace, weights)
        for seed in range(20):
            other = weights + 1e-3 * weights.norm() * draw(4, seed=seed)
            assert misfit(kspace, other) >= best * (1 - 1e-6)

    def test_more_turns_are_never_worse(self) -> None:
        kspace = scan()
        errors = [misfit(kspace, self.fit(kspace, num_iterations=n)) for n in (1, 2, 4, 8, 16)]
        assert errors == sorted(errors, reverse=True)

    def test_order_of_coils_does_not_matter(self) -> None:
        kspace, order = scan(), [2, 0, 3, 1]
        weights = self.fit(kspace)
        torch.testing.assert_close(self.fit(kspace[:, order]), weights[order], rtol=1e-6, atol=1e-9)

    def test_scale_of_the_scan_does_not_matter(self) -> None:
        kspace = scan()
        torch.testing.assert_close(self.fit(1e-6 * kspace), self.fit(kspace), rtol=1e-6, atol=1e-9)

    def test_nothing_to_fit(self) -> None:
        with pytest.raises(ValueError, match="zero"):
            self.fit(torch.zeros(2, 3, 4, 4, dtype=torch.complex64))
        with pytest.raises(ValueError, match="slice"):
            self.fit(torch.zeros(0, 3, 4, 4, dtype=torch.complex64))
