"""Losses of reconstruction: formulas, reference values, and why the naive ones end in NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from core_mri.metrics import ssim as skimage_ssim
from core_mri.models.encoder import Encoder
from core_mri.models.registry import EncoderConfig, UnrolledConfig
from core_mri.models.unrolled import Encoded, Unrolled, encode, stacked, target_of
from core_mri.physics import birdcage_maps, simulate_kspace, smooth_phase, undersampling_mask
from downstream.reconstruction.training.losses.consistency import (
    equivariance_loss,
    noise_loss,
    transformed,
)
from downstream.reconstruction.training.losses.features import feature_loss
from downstream.reconstruction.training.losses.holdout import CENTER, Selection, holdout_loss, split
from downstream.reconstruction.training.losses.normalized import normalized_l1
from downstream.reconstruction.training.losses.supervised import ssim, supervised_loss

SIZE = 32
MICRO = UnrolledConfig(num_steps=1, channels=4, num_pools=2, start="cg-sense")


def scan(brightness: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """K-space [4, SIZE, SIZE] of all lines, mask, magnitude; nothing but noise for 0."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(SIZE, SIZE)
    image[6:26, 8:24] = brightness
    image[12:18, 12:16] = 0.3 * brightness
    shape = (SIZE, SIZE)
    kspace = simulate_kspace(image, birdcage_maps(4, shape, rng), smooth_phase(shape, rng),
                             0.002 * brightness, rng)  # fmt: skip
    mask = undersampling_mask("random", shape, center_fractions=[0.25], accelerations=[2],
                              seed=seed).reshape(-1)  # fmt: skip
    return kspace, mask, image


def both(*brightness: float) -> Encoded:
    return stacked([encode(*scan(b, seed)[:2]) for seed, b in enumerate(brightness)])


def network(seed: int = 0) -> Unrolled:
    torch.manual_seed(seed)
    net = Unrolled(MICRO)
    torch.nn.init.normal_(net.denoisers[0].last.weight, std=0.05)  # type: ignore[arg-type]
    return net


class TestSupervised:
    def test_ssim_is_that_of_the_metric(self) -> None:
        """skimage's, which `core_mri.metrics` calls."""
        rng = np.random.default_rng(0)
        reference = rng.random((3, 20, 24)).astype(np.float32)
        estimate = reference + 0.2 * rng.random((3, 20, 24)).astype(np.float32)
        peak = torch.full((3,), float(reference.max()))
        ours = ssim(torch.from_numpy(estimate), torch.from_numpy(reference), peak)
        assert float(ours.mean()) == pytest.approx(skimage_ssim(reference, estimate), abs=1e-5)

    def test_zero_for_the_truth(self) -> None:
        image = scan()[2][None]
        loss = supervised_loss(image, image, torch.ones(1))
        assert float(loss) == pytest.approx(0, abs=1e-5)

    def test_scale_does_not_matter(self) -> None:
        reference = scan()[2][None]
        estimate = reference + 0.1 * torch.rand(1, SIZE, SIZE)
        peak = torch.ones(1)
        one = supervised_loss(estimate, reference, peak)
        other = supervised_loss(1e-6 * estimate, 1e-6 * reference, 1e-6 * peak)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)

    def test_the_phase_counts(self) -> None:
        kspace, mask, image = scan()
        encoded = encode(kspace, mask)
        target = target_of(encoded, kspace[None])
        peak = torch.ones(1)
        right = supervised_loss(image[None], image[None], peak, image=target, target=target)
        wrong = supervised_loss(image[None], image[None], peak, image=-target, target=target)
        assert wrong > right


class TestNormalized:
    def test_it_is_that_of_fastmri(self) -> None:
        """By hand: both by mean and standard deviation of the input, cut to 6."""
        rng = torch.Generator().manual_seed(0)
        x, r = torch.rand(2, 8, 8, generator=rng), 2 * torch.rand(2, 8, 8, generator=rng)
        expected = [
            (((a - a.mean()) / a.std()).clamp(-6, 6) - ((b - a.mean()) / a.std()).clamp(-6, 6))
            .abs().mean()
            for a, b in zip(x, r, strict=True)
        ]  # fmt: skip
        torch.testing.assert_close(normalized_l1(lambda n: n, x, r), torch.stack(expected))


class TestSplit:
    @pytest.mark.parametrize("selection", ["uniform", "gaussian", "lines"])
    def test_theta_and_lambda_make_omega(self, selection: Selection) -> None:
        mask = scan()[1][None]
        theta, held = split(mask, SIZE, share=0.4, selection=selection,
                            rng=np.random.default_rng(0))  # fmt: skip
        assert not (theta & held).any()
        assert torch.equal(theta | held, mask.expand(SIZE, -1))
        wanted = 0.4 * mask.sum() * SIZE
        assert abs(int(held.sum()) - wanted) <= (SIZE if selection == "lines" else 1)

    @pytest.mark.parametrize("selection", ["uniform", "gaussian"])
    def test_the_center_always_stays(self, selection: Selection) -> None:
        everything = torch.ones(1, SIZE, dtype=torch.bool)
        for seed in range(20):
            theta, _ = split(everything, SIZE, share=0.9, selection=selection,
                             rng=np.random.default_rng(seed))  # fmt: skip
            middle = slice(SIZE // 2 - CENTER // 2 + 1, SIZE // 2 + CENTER // 2)
            assert theta[middle, middle].all()

    def test_gaussian_is_denser_at_the_center(self) -> None:
        everything = torch.ones(1, 64, dtype=torch.bool)
        _, held = split(everything, 64, share=0.2, selection="gaussian",
                        rng=np.random.default_rng(0))  # fmt: skip
        assert held[22:42, 22:42].float().mean() > 3 * held[:12].float().mean()

    def test_lines_are_whole(self) -> None:
        _, held = split(scan()[1][None], SIZE, share=0.4, selection="lines",
                        rng=np.random.default_rng(0))  # fmt: skip
        assert held.any()
        assert torch.equal(held.any(0), held.all(0))

    def test_same_seed_same_split(self) -> None:
        first, second, other = (
            split(scan()[1][None], SIZE, share=0.4, selection="uniform",
                  rng=np.random.default_rng(seed))[1]
            for seed in (1, 1, 2)
        )  # fmt: skip
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_a_mask_of_points(self) -> None:
        points = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.5
        theta, held = split(points, SIZE, share=0.3, selection="uniform",
                            rng=np.random.default_rng(0))  # fmt: skip
        assert torch.equal(theta | held, points)


def naive(encoded: Encoded, image: Tensor, held: Tensor) -> Tensor:
    """The formula as it is printed, on k-space at its raw scale: what the seed's run did."""
    wanted = (encoded.kspace * encoded.scale.unsqueeze(-3)) * held.unsqueeze(-3)
    found = encoded.sense(held).forward(image * encoded.scale)
    u, v = wanted.flatten(1), found.flatten(1)
    second = (u - v).norm(dim=1) / u.norm(dim=1)
    return second + (u - v).abs().sum(1) / u.abs().sum(1)


class TestHoldout:
    def held(self, encoded: Encoded) -> tuple[Encoded, Tensor]:
        parts = [
            split(mask, SIZE, share=0.4, selection="uniform", rng=np.random.default_rng(i))
            for i, mask in enumerate(encoded.mask)
        ]
        theta, held = (torch.stack(part) for part in zip(*parts, strict=True))
        return encoded.of(theta), held

    def test_the_cause_of_nan(self) -> None:
        """Raw scale 1e-6 and empty slices: 0 / 0 in value and gradient; ours stays finite."""
        encoded = both(1e-6, 0.0)
        given, held = self.held(encoded)
        net = network()
        bad = naive(encoded, net(given), held)
        assert torch.isfinite(bad[0])
        assert torch.isnan(bad[1])
        bad.mean().backward()
        assert any(torch.isnan(p.grad).any() for p in net.parameters() if p.grad is not None)
        net = network()
        good = holdout_loss(encoded, net(given), held)
        good.mean().backward()
        assert torch.isfinite(good).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)

    def test_scale_does_not_matter(self) -> None:
        net = network()
        losses = []
        for brightness in (1.0, 1e-6):
            encoded = both(brightness)
            given, held = self.held(encoded)
            losses.append(float(holdout_loss(encoded, net(given), held).detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)

    def test_by_hand(self) -> None:
        """||u - v|| / ||u|| in both norms; 2 for an image of zeros, 0 for the truth."""
        kspace, mask, _ = scan()
        encoded = encode(kspace, mask)
        _, held = self.held(encoded)
        nothing = torch.zeros(1, SIZE, SIZE, dtype=torch.complex64)
        assert float(holdout_loss(encoded, nothing, held)) == pytest.approx(2, abs=1e-3)
        truth = replace(encoded, kspace=encoded.sense().forward(nothing + 1))
        assert float(holdout_loss(truth, nothing + 1, held)) == pytest.approx(0, abs=1e-4)

    def test_only_held_samples_count(self) -> None:
        encoded = both(1.0)
        given, held = self.held(encoded)
        image = network()(given)
        changed = replace(encoded, kspace=torch.where(held[:, None], encoded.kspace, 7))
        assert torch.equal(holdout_loss(encoded, image, held), holdout_loss(changed, image, held))


class TestConsistency:
    def test_moving_keeps_the_content(self) -> None:
        image = torch.rand(2, 12, 12) + 0j
        found = transformed(image, np.random.default_rng(3))
        assert torch.equal(found.abs().flatten().sort().values, image.abs().flatten().sort().values)
        assert not torch.equal(found, image)

    def test_oblong_images_keep_their_shape(self) -> None:
        for seed in range(8):
            assert transformed(torch.ones(1, 8, 12) + 0j, np.random.default_rng(seed)).shape == (
                1, 8, 12,
            )  # fmt: skip

    def test_a_perfect_network_loses_nothing(self) -> None:
        """Full sampling, no noise, and least squares."""
        kspace, _, _ = scan()
        encoded = encode(kspace, torch.ones(SIZE, dtype=torch.bool))
        encoded = replace(encoded, maps=encoded.maps.abs().sum(1, keepdim=True).clamp(0, 1) * 0 + 1,
                          kspace=encoded.kspace[:, :1])  # fmt: skip

        def perfect(one: Encoded) -> Tensor:
            return one.sense().adjoint(one.kspace)

        loss = equivariance_loss(perfect, encoded, perfect(encoded), mask=encoded.mask, noise=0.0,
                                 rng=np.random.default_rng(0))  # fmt: skip
        assert float(loss) == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("kind", ["equivariance", "noise"])
    def test_finite_for_blank_slices(self, kind: str) -> None:
        encoded = both(1.0, 0.0)
        net = network()
        image = net(encoded)
        rng = np.random.default_rng(0)
        if kind == "noise":
            loss = noise_loss(net, encoded, image, noise=0.01, rng=rng)
        else:
            loss = equivariance_loss(net, encoded, image, mask=encoded.mask, noise=0.01, rng=rng)
        loss[0].backward()
        assert torch.isfinite(loss).all()
        assert float(loss[0]) > 0
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


class TestFeatures:
    def test_zero_for_the_truth_and_gradients_for_the_rest(self) -> None:
        sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32}
        encoder = Encoder(EncoderConfig(**sizes)).eval().requires_grad_(False)
        reference = scan()[2][None]
        estimate = (reference + 0.2 * torch.rand(1, SIZE, SIZE)).requires_grad_()
        assert float(feature_loss(encoder, reference, reference)) == pytest.approx(0, abs=1e-5)
        loss = feature_loss(encoder, estimate, reference)
        loss.sum().backward()
        assert float(loss.detach()) > 1e-4
        assert estimate.grad is not None
        assert estimate.grad.abs().sum() > 0
