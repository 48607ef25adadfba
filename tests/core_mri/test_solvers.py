"""Conjugate gradients, FISTA, ADMM and the Haar frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core_mri.physics import (
    Sense,
    admm_tv,
    conjugate_gradient,
    fista_haar,
    haar_analysis,
    haar_shrink,
    haar_synthesis,
)
from core_mri.physics.solvers import differences, differences_adjoint
from tests.core_mri.simulated_scan import scan

DOUBLE = torch.complex128


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def problem(acceleration: float = 3) -> tuple[Sense, Tensor, Tensor]:
    kspace, mask, image, maps = scan(acceleration=acceleration, noise=0.001)
    sense = Sense(maps.to(DOUBLE), mask[None])
    return sense, sense.adjoint(kspace.to(DOUBLE)), image.to(DOUBLE)


class TestConjugateGradient:
    def test_solves_the_system(self) -> None:
        maps, right = draw((3, 6, 8), 0), draw((6, 8), 1)
        sense = Sense(maps, torch.tensor([[True, False] * 4]))
        units = torch.eye(48, dtype=DOUBLE)
        dense = torch.stack([sense.normal(u.reshape(6, 8)).flatten() for u in units], 1)
        exact = torch.linalg.solve(dense + 0.1 * units, right.flatten()).reshape(6, 8)
        found = conjugate_gradient(sense.normal, right, ridge=0.1, num_iterations=200)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)

    def test_stops_at_the_tolerance(self) -> None:
        sense, right, _ = problem()
        calls = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return sense.normal(x)

        x = conjugate_gradient(counted, right, ridge=0.1, num_iterations=500, tolerance=1e-3)
        residual = right - sense.normal(x) - 0.1 * x
        assert float(residual.norm() / right.norm()) < 1e-3
        assert calls < 100

    def test_batch_entries_do_not_touch_each_other(self) -> None:
        sense, right, _ = problem()
        both = torch.stack([right, torch.zeros_like(right), 1e6 * right])
        found = conjugate_gradient(sense.normal, both, num_iterations=8)
        alone = conjugate_gradient(sense.normal, right, num_iterations=8)
        torch.testing.assert_close(found[0], alone)
        assert not found[1].any()
        torch.testing.assert_close(found[2] / 1e6, alone)

    def test_gradients(self) -> None:
        sense = Sense(draw((2, 3, 4), 0), torch.tensor([[True, False, True, True]]))
        right = draw((3, 4), 1).requires_grad_()
        ridge = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

        def solve(b: Tensor, mu: Tensor) -> Tensor:
            return conjugate_gradient(sense.normal, b, ridge=mu, num_iterations=4)

        assert torch.autograd.gradcheck(solve, (right, ridge))


class TestHaar:
    @pytest.mark.parametrize("shape", [(16, 16), (7, 9), (2, 3, 10, 5), (1, 12)])
    def test_round_trip(self, shape: tuple[int, ...]) -> None:
        x = draw(shape, 0)
        torch.testing.assert_close(haar_synthesis(haar_analysis(x, 3)), x)

    @pytest.mark.parametrize("shape", [(16, 16), (7, 9), (2, 3, 10, 5), (1, 12)])
    @pytest.mark.parametrize("num_levels", [1, 3])
    def test_shrink_is_analysis_and_synthesis(
        self, shape: tuple[int, ...], num_levels: int
    ) -> None:
        """Also where an image is smaller than the reach of its deepest level."""
        x = draw(shape, 0).requires_grad_()
        *bands, average = haar_analysis(x, num_levels)
        shrunk = []
        for level, band in enumerate(bands):
            limit = 0.2 * 4 * 2**level
            shrunk.append(band * (1 - (limit / band.abs().clamp_min(limit)) ** 1.5))
        expected, found = (
            haar_synthesis([*shrunk, average]),
            haar_shrink(x, 0.2, num_levels=num_levels),
        )
        torch.testing.assert_close(found, expected)
        one, other = (torch.autograd.grad(y.abs().square().sum(), x)[0] for y in (found, expected))
        torch.testing.assert_close(one, other)

    def test_does_not_depend_on_where_blocks_begin(self) -> None:
        x = draw((11, 14), 0)
        moved = haar_shrink(x.roll((3, 5), (0, 1)), 0.4)
        torch.testing.assert_close(moved, haar_shrink(x, 0.4).roll((3, 5), (0, 1)))

    def test_phase_does_not_matter(self) -> None:
        x = draw((8, 8), 0)
        torch.testing.assert_close(haar_shrink(1j * x, 0.4), 1j * haar_shrink(x, 0.4))

    def test_threshold_zero_keeps_the_image_and_infinity_its_mean(self) -> None:
        x = draw((16, 16), 0)
        torch.testing.assert_close(haar_shrink(x, 0.0), x)
        flat = haar_shrink(x, 1e9, num_levels=4)
        torch.testing.assert_close(flat, x.mean().expand(16, 16))

    def test_removes_noise(self) -> None:
        _, _, image, _ = scan(acceleration=1)
        noisy = image + 0.05 * draw(tuple(image.shape), 0).to(image.dtype)
        cleaned = haar_shrink(noisy, 0.05)
        assert float((cleaned - image).norm()) < 0.6 * float((noisy - image).norm())

    def test_gradients(self) -> None:
        x = draw((4, 5), 0)
        x[0] = 0
        threshold = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(haar_shrink, (draw((4, 5), 0).requires_grad_(), threshold))
        x.requires_grad_()
        haar_shrink(x, 0.3).abs().square().sum().backward()
        assert bool(torch.isfinite(torch.view_as_real(x.grad)).all())


class TestSparse:
    def test_differences_are_adjoint(self) -> None:
        x, y = draw((5, 7), 0), draw((2, 5, 7), 1)
        left = (differences(x).conj() * y).sum()
        torch.testing.assert_close(left, (x.conj() * differences_adjoint(y)).sum())

    @pytest.mark.parametrize("solve", [admm_tv, fista_haar])
    def test_better_than_least_squares(self, solve: object) -> None:
        sense, right, image = problem(acceleration=4)
        ridge = conjugate_gradient(sense.normal, right, ridge=0.01, num_iterations=20)
        sparse = solve(sense.normal, right, 0.002)  # type: ignore[operator]
        assert float((sparse - image).norm()) < 0.5 * float((ridge - image).norm())

    def test_tv_agrees_with_a_slow_solver(self) -> None:
        """The objective against sigpy's primal-dual solver of the same problem."""
        sigpy = pytest.importorskip("sigpy.mri.app")
        kspace, mask, _, maps = scan(height=40, width=32, acceleration=2)
        weight = 0.003
        # sigpy's TV adds |D_h x| + |D_w x|; the isotropic objective is compared at both images.
        theirs = torch.from_numpy(
            sigpy.TotalVariationRecon(
                kspace.numpy(), maps.numpy(), weight, weights=mask.double().numpy()[None, None],
                max_iter=400, show_pbar=False,
            ).run()
        )  # fmt: skip
        sense = Sense(maps, mask[None])
        ours = admm_tv(sense.normal, sense.adjoint(kspace), weight, num_iterations=200)

        def objective(x: Tensor) -> float:
            misfit = (sense.forward(x) - kspace * mask).abs().square().sum() / 2
            return float(misfit + weight * differences(x).abs().square().sum(0).sqrt().sum())

        assert objective(ours) < objective(theirs)
        assert float((ours - theirs).norm() / theirs.norm()) < 0.05

    def test_zero_data_gives_zeros(self) -> None:
        sense, right, _ = problem()
        for solve in (admm_tv, fista_haar):
            assert not solve(sense.normal, torch.zeros_like(right), 0.0).any()

    def test_gradients_flow_to_the_data(self) -> None:
        sense, right, _ = problem()
        right = right.detach().requires_grad_()
        for solve in (admm_tv, fista_haar):
            image = solve(sense.normal, right, 0.002, num_iterations=3)
            (gradient,) = torch.autograd.grad(image.abs().square().sum(), right)
            assert bool(torch.isfinite(torch.view_as_real(gradient)).all())
            assert float(gradient.norm()) > 0
