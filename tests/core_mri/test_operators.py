"""The SENSE operator: adjoint, norm, gradients, and sigpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core_mri.physics import Sense, fft2c, ifftnc, operator_norm, operators

DOUBLE = torch.complex128


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> complex:
    return complex((a.conj() * b).sum())


CASES = {
    "lines": ((3, 8, 10), (1, 10), (-2, -1)),
    "points": ((3, 8, 10), (8, 10), (-2, -1)),
    "odd sizes": ((4, 7, 9), (1, 9), (-2, -1)),
    "one coil": ((1, 6, 6), (1, 6), (-2, -1)),
    "batch": ((2, 3, 8, 10), (1, 10), (-2, -1)),
    "masks of a batch": ((2, 3, 8, 9), (2, 1, 9), (-2, -1)),
    "readout is an image": ((3, 8, 10), (1, 10), (-1,)),
    "no mask": ((3, 8, 10), None, (-2, -1)),
}


@pytest.fixture(params=CASES, name="sense")
def _sense(request: pytest.FixtureRequest) -> Sense:
    shape, mask_shape, axes = CASES[request.param]
    generator = torch.Generator().manual_seed(5)
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.5
    return Sense(draw(shape, 0), mask, axes=axes)


class TestSense:
    def test_adjoint(self, sense: Sense) -> None:
        """<A x, y> = <x, A^H y>, in double precision."""
        shape = sense.maps.shape
        x, y = draw((*shape[:-3], *shape[-2:]), 1), draw(tuple(shape), 2)
        left, right = inner(sense.forward(x), y), inner(x, sense.adjoint(y))
        assert abs(left - right) < 1e-12 * abs(left)

    def test_normal_is_adjoint_of_forward(self, sense: Sense) -> None:
        shape = sense.maps.shape
        x = draw((*shape[:-3], *shape[-2:]), 1)
        torch.testing.assert_close(sense.normal(x), sense.adjoint(sense.forward(x)))

    @pytest.mark.parametrize("room", [1, 200])
    def test_a_few_coils_at_a_time(
        self, sense: Sense, room: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One, or what a cache holds: the same image and gradient as all of them together."""
        shape = sense.maps.shape
        x = draw((*shape[:-3], *shape[-2:]), 1).requires_grad_()
        whole = sense.normal(x)
        expected = torch.autograd.grad(whole.abs().square().sum(), x)[0]
        monkeypatch.setattr(operators, "IN_CACHE", room)
        parts = sense.normal(x)
        torch.testing.assert_close(parts, whole)
        found = torch.autograd.grad(parts.abs().square().sum(), x)[0]
        torch.testing.assert_close(found, expected)

    def test_norm(self, sense: Sense) -> None:
        """Power iteration against the dense matrix of one batch entry."""
        maps = sense.maps if sense.maps.ndim == 3 else sense.maps[0]
        mask = None if sense.mask is None else sense.mask.reshape(-1, *sense.mask.shape[-2:])[0]
        single = Sense(maps, mask, axes=sense.axes)
        units = torch.eye(maps.shape[-2] * maps.shape[-1], dtype=DOUBLE)
        columns = [single.forward(u.reshape(maps.shape[-2:])).flatten() for u in units]
        exact = torch.linalg.matrix_norm(torch.stack(columns, 1), 2)
        found = operator_norm(single, num_iterations=300)
        assert float(found) == pytest.approx(float(exact), rel=1e-2)
        assert float(found) <= float(exact) + 1e-9

    def test_gradients(self, sense: Sense) -> None:
        maps = sense.maps[..., :2, :4, :].clone()
        mask = sense.mask
        small = None if mask is None else mask.squeeze(-3)[..., :4, :]
        x = draw((*maps.shape[:-3], *maps.shape[-2:]), 1).requires_grad_()

        def data_consistency(image: Tensor, coils: Tensor) -> Tensor:
            operator = Sense(coils, small, axes=sense.axes)
            return operator.normal(image) + operator.adjoint(operator.forward(image))

        assert torch.autograd.gradcheck(data_consistency, (x, maps.requires_grad_()))

    def test_unit_maps_have_norm_one(self) -> None:
        maps = draw((4, 6, 8), 0)
        maps = maps / maps.abs().square().sum(0).sqrt()
        assert float(operator_norm(Sense(maps))) == pytest.approx(1)

    def test_sigpy(self) -> None:
        linop = pytest.importorskip("sigpy.mri.linop")
        maps, x, y = draw((3, 8, 10), 0), draw((8, 10), 1), draw((3, 8, 10), 2)
        mask = torch.rand((1, 10), generator=torch.Generator().manual_seed(5)) < 0.5
        theirs = linop.Sense(maps.numpy(), weights=np.broadcast_to(mask.numpy(), (8, 10)))
        ours = Sense(maps, mask)
        np.testing.assert_allclose(ours.forward(x).numpy(), theirs(x.numpy()), atol=1e-12)
        np.testing.assert_allclose(ours.adjoint(y).numpy(), theirs.H(y.numpy()), atol=1e-12)

    def test_readout_as_image_is_the_same_problem(self) -> None:
        maps, x = draw((3, 8, 10), 0), draw((8, 10), 1)
        mask = torch.tensor([[True, False] * 5])
        whole, hybrid = Sense(maps, mask), Sense(maps, mask, axes=(-1,))
        torch.testing.assert_close(ifftnc(whole.forward(x), (-2,)), hybrid.forward(x))
        torch.testing.assert_close(whole.normal(x), hybrid.normal(x))

    def test_full_sampling_is_the_fourier_transform(self) -> None:
        x = draw((8, 9), 1)
        torch.testing.assert_close(Sense(torch.ones(1, 8, 9, dtype=DOUBLE)).forward(x)[0], fft2c(x))

    @pytest.mark.parametrize(("mask", "axes"), [((1, 9), (-2, -1)), ((8, 10), (-1,))])
    def test_masks_that_do_not_fit(self, mask: tuple[int, int], axes: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            Sense(draw((3, 8, 10), 0), torch.ones(mask, dtype=torch.bool), axes=axes)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_device_of_the_maps(self) -> None:
        maps = draw((3, 8, 10), 0).cuda()
        assert Sense(maps, torch.ones(1, 10, dtype=torch.bool).cuda()).normal(maps[0]).is_cuda
