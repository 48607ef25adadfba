"""The unrolled network: CG-SENSE at first, learns, keeps to the data, is released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import core_mri
from core_mri.errors import ConfigError, DataError
from core_mri.models import denoisers
from core_mri.models.registry import MODELS, EncoderConfig, UnrolledConfig
from core_mri.models.unrolled import Encoded, Unrolled, encode, stacked, target_of
from core_mri.physics import (
    Sense,
    birdcage_maps,
    haar_analysis,
    haar_synthesis,
    reconstruct,
    root_sum_of_squares,
    simulate_kspace,
    smooth_phase,
    solvers,
    undersampling_mask,
)
from core_mri.physics.classical import Method
from core_mri.physics.phantoms import phantom_volume

SIZE = 48
MICRO = UnrolledConfig(num_steps=2, channels=4, num_pools=2, steps_per_denoiser=1)
VIT = EncoderConfig(embed_dim=16, depth=4, num_heads=2, patch_size=8, image_size=32)
SEEING = replace(MICRO, encoder=VIT, encoder_depths=(0, 1, 2, 3))


def scan(seed: int = 0, width: int = SIZE, coils: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """K-space [C, SIZE, width] of all lines, mask [width], magnitude [SIZE, width]."""
    rng = np.random.default_rng(seed)
    volume, _ = phantom_volume("brain", seed, "T2", size=SIZE, num_slices=3, seed=0)
    image = torch.from_numpy(np.asarray(volume.array[:, :, 1].T, dtype=np.float32)).clone()
    image = image[:, (SIZE - width) // 2 :][:, :width] / image.max()
    shape = (SIZE, width)
    kspace = simulate_kspace(image, birdcage_maps(coils, shape, rng), smooth_phase(shape, rng),
                             0.002, rng)  # fmt: skip
    mask = undersampling_mask(
        "random", shape, center_fractions=[0.25], accelerations=[3], seed=seed
    ).reshape(-1)
    return kspace, mask, image


def network(config: UnrolledConfig = MICRO, seed: int = 0) -> Unrolled:
    torch.manual_seed(seed)
    return Unrolled(config).eval()


def disturbed(net: Unrolled) -> Unrolled:
    """The same network with denoisers that change something."""
    torch.manual_seed(1)
    for denoiser in net.denoisers:
        torch.nn.init.normal_(denoiser.last.weight, std=0.05)  # type: ignore[arg-type]
    return net


class TestAtFirst:
    @pytest.mark.parametrize("start", ["wavelet", "cg-sense"])
    @pytest.mark.parametrize("denoiser", ["unet", "resnet"])
    @pytest.mark.parametrize("data_steps", [0, 4])
    def test_it_is_its_warm_start(self, start: str, denoiser: str, data_steps: int) -> None:
        config = replace(MICRO, start=start, denoiser=denoiser, data_steps=data_steps, num_blocks=2)
        net = network(config)
        encoded = encode(*scan()[:2])
        torch.testing.assert_close(net(encoded), net.warm_start(encoded), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("start", ["wavelet", "cg-sense"])
    def test_the_warm_start_is_the_classical_image(self, start: Method) -> None:
        kspace, mask, _ = scan(coils=5)  # as many as the readout keeps, so both compress alike
        net = network(replace(MICRO, start=start, start_steps=20))
        found = net.reconstruct(kspace[None], mask, size=(SIZE, SIZE))[0]
        expected = reconstruct(kspace * mask, mask, start, num_iterations=20).image.abs()
        assert float((found - expected).norm() / expected.norm()) < 0.01

    def test_the_encoder_changes_nothing(self) -> None:
        """Gates are zero: the net with encoder equals the one without, whatever it sees."""
        seeing, blind = network(SEEING), network(MICRO)
        own = {k: v for k, v in seeing.state_dict().items() if not k.startswith("context")}
        disturbed(seeing)
        own |= {k: v for k, v in seeing.state_dict().items() if k in own}
        blind.load_state_dict(own)
        encoded = encode(*scan()[:2])
        assert torch.equal(seeing(encoded), blind(encoded))

    def test_but_its_gates_learn(self) -> None:
        seeing = disturbed(network(SEEING))
        seeing(encode(*scan()[:2])).abs().sum().backward()
        assert seeing.context is not None
        assert seeing.context.gates.grad is not None
        assert (seeing.context.gates.grad != 0).any(-1).all()
        torch.nn.init.ones_(seeing.context.gates)
        blind = seeing(encode(*scan()[:2]))
        torch.nn.init.zeros_(seeing.context.gates)
        assert not torch.equal(blind, seeing(encode(*scan()[:2])))


class TestGradients:
    @pytest.mark.parametrize("data_steps", [0, 2])
    def test_every_parameter_gets_one(self, data_steps: int) -> None:
        net = disturbed(network(replace(SEEING, data_steps=data_steps)))
        assert net.context is not None
        torch.nn.init.normal_(net.context.gates)
        net(encode(*scan()[:2])).abs().mean().backward()
        unused = ("cls", "mask_token")
        for name, parameter in net.named_parameters():
            if not any(word in name for word in unused):
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
        assert float(net.weights.grad.abs().min()) > 0  # type: ignore[union-attr]

    def test_blank_slice(self) -> None:
        """No NaN in image or gradients."""
        net = disturbed(network(SEEING))
        encoded = encode(torch.zeros(3, SIZE, SIZE, dtype=torch.complex64), scan()[1])
        image = net(encoded)
        image.abs().square().sum().backward()
        assert torch.isfinite(torch.view_as_real(image)).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)

    def test_a_few_steps_help(self) -> None:
        kspace, mask, image = scan()
        encoded = encode(kspace, mask)
        wanted = image / encoded.scale[0]
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
        errors = []
        for _ in range(30):
            error = (net(encoded)[0].abs() - wanted).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach()))
        assert errors[-1] < 0.5 * errors[0]


class TestImages:
    def test_scale_of_the_data(self) -> None:
        kspace, mask, _ = scan()
        net = disturbed(network(SEEING))
        small = net.reconstruct(1e-6 * kspace[None], mask, size=(SIZE, SIZE))
        large = net.reconstruct(1e3 * kspace[None], mask, size=(SIZE, SIZE))
        torch.testing.assert_close(small * 1e9, large, rtol=1e-3, atol=1e-3 * float(large.max()))

    def test_full_sampling_gives_the_image(self) -> None:
        kspace, _, image = scan()
        everything = torch.ones(SIZE, dtype=torch.bool)
        found = network().reconstruct(kspace[None], everything, size=(SIZE, SIZE))[0]
        assert float((found - image).norm() / image.norm()) < 0.03

    @pytest.mark.parametrize("shape", [(SIZE,), (1, SIZE), (1, 1, 1, SIZE), (SIZE, SIZE),
                                       (2, 1, 1, SIZE)])  # fmt: skip
    def test_masks_of_any_shape(self, shape: tuple[int, ...]) -> None:
        kspace, mask, _ = scan()
        both = torch.stack([kspace, 2 * kspace]) * mask
        net = disturbed(network())
        found = net.reconstruct(both, mask.expand(shape), size=(40, 30))
        expected = net.reconstruct(both, mask, size=(40, 30))
        assert found.shape == (2, 40, 30)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    def test_odd_width_and_one_coil(self) -> None:
        kspace, mask, _ = scan(width=37, coils=1)
        image = network(SEEING).reconstruct(kspace[None], mask, size=(SIZE, 37))
        assert torch.isfinite(image).all()

    def test_without_a_center(self) -> None:
        kspace, mask, _ = scan()
        lacking = mask.clone()
        lacking[SIZE // 2] = False
        with pytest.raises(DataError, match="DATA-21"):
            network().reconstruct(kspace[None], lacking, size=(SIZE, SIZE))


class TestEncoded:
    def test_batch_equals_slices(self) -> None:
        """Also with another mask for each slice."""
        net = disturbed(network(SEEING))
        alone = [encode(*scan(seed)[:2]) for seed in (0, 1)]
        together = net(stacked(alone))
        for one, found in zip(alone, together, strict=True):
            torch.testing.assert_close(net(one)[0], found, atol=1e-5, rtol=1e-4)

    def test_target_is_the_image(self) -> None:
        kspace, mask, image = scan()
        encoded = encode(kspace, mask)
        found = target_of(encoded, kspace[None]).abs() * encoded.scale
        assert float((found[0] - image).norm() / image.norm()) < 0.03

    def test_fewer_points_in_the_same_scale(self) -> None:
        kspace, mask, _ = scan()
        encoded = encode(kspace, mask)
        fewer = mask.clone()
        fewer[::2] = False
        part = encoded.of(fewer[None, None])
        assert torch.equal(part.scale, encoded.scale)
        assert torch.equal(part.kspace, encoded.kspace * fewer)
        assert isinstance(part, Encoded)
        assert float(part.acceleration) > float(encoded.acceleration)

    def test_virtual_coils_keep_the_energy(self) -> None:
        kspace, mask, _ = scan()
        encoded = encode(kspace, mask)
        expected = root_sum_of_squares(kspace * mask, 0)
        torch.testing.assert_close(
            root_sum_of_squares(encoded.kspace[0] * encoded.scale, 0), expected,
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


class TestFast:
    """What is computed in an order that a processor likes is what the formulas say."""

    @pytest.mark.parametrize("denoiser", ["unet", "resnet"])
    def test_the_same_as_the_formulas(self, denoiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
        net = disturbed(network(replace(MICRO, denoiser=denoiser, num_blocks=2)))
        torch.nn.init.constant_(net.gates, 0.02)
        kspace, mask, _ = scan()
        single, double = encode(kspace, mask), encode(kspace.to(torch.complex128), mask)

        def computed() -> tuple[Tensor, Tensor, list[Tensor]]:
            """Image in single precision, image and gradients in double precision."""
            with torch.no_grad():
                rough = net.float()(single)
            image = net.double()(double)
            energy = image.abs().square().sum()
            gradients = torch.autograd.grad(energy, list(net.parameters()))
            return rough, image.detach(), list(gradients)

        rough, *fast = computed()
        monkeypatch.setattr(Sense, "normal", lambda self, x: self.adjoint(self.forward(x)))
        monkeypatch.setattr(solvers, "haar_shrink", plain_shrink)
        monkeypatch.setattr(
            denoisers, "_channels", lambda image: torch.stack([image.real, image.imag], 1)
        )
        expected, *plain = computed()
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-9)
        assert float((rough - expected).norm() / expected.norm()) < 1e-5

    @pytest.mark.parametrize("denoiser", ["unet", "resnet"])
    def test_autocast_is_for_convolutions_alone(self, denoiser: str) -> None:
        net = disturbed(network(replace(MICRO, denoiser=denoiser, num_blocks=2)))
        encoded = encode(*scan()[:2])
        exact = net(encoded).detach()
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(encoded)
        assert rough.dtype == torch.complex64
        rough.abs().sum().backward()
        assert 0 < float((rough.detach() - exact).norm() / exact.norm()) < 0.02

    def test_fewer_coils_at_each_readout_position(self) -> None:
        kspace, mask, _ = scan(coils=8)
        encoded = encode(kspace, mask)
        images = []
        for count in (0, 7, 5, 1):
            net = disturbed(network(replace(MICRO, readout_coils=count)))
            images.append(net(encoded).detach())
        errors = [float((x - images[0]).norm() / images[0].norm()) for x in images]
        assert errors[1] < errors[2] < 2e-3 < errors[3]

    def test_all_coils_for_single_points(self) -> None:
        """Positions along the readout are no separate problems then."""
        kspace, mask, _ = scan(coils=8)
        points = mask.repeat(SIZE, 1)
        points[::5, 2] ^= True
        encoded = encode(kspace, points)
        exact, asked = (disturbed(network(replace(MICRO, readout_coils=n))) for n in (0, 2))
        assert torch.equal(exact(encoded), asked(encoded))


def plain_shrink(image: Tensor, threshold: Tensor, *, num_levels: int = 3) -> Tensor:
    *bands, average = haar_analysis(image, num_levels)
    for level, band in enumerate(bands):
        limit = threshold * 4 * 2**level
        bands[level] = band * (1 - (limit / torch.maximum(band.abs(), limit)) ** 1.5)
    return haar_synthesis([*bands, average])


class TestRelease:
    @pytest.mark.parametrize("config", [MICRO, SEEING, replace(MICRO, denoiser="resnet",
                                                               num_blocks=1)])  # fmt: skip
    def test_one_folder_holds_all(self, config: UnrolledConfig, tmp_path: Path) -> None:
        net = disturbed(network(config))
        core_mri.save_model(net, tmp_path / "weights")
        again = core_mri.load_model(tmp_path / "weights", device="cpu")
        assert isinstance(again, Unrolled)
        assert again.config == config
        kspace, mask, _ = scan()
        arguments = (kspace[None] * mask, mask)
        expected = net.reconstruct(*arguments, size=(SIZE, SIZE))
        assert torch.equal(again.reconstruct(*arguments, size=(SIZE, SIZE)), expected)

    def test_by_name(self) -> None:
        net = core_mri.create_model("unrolled_micro", num_steps=1)
        assert isinstance(net, Unrolled)
        assert net.config.num_steps == 1
        assert "unrolled" in core_mri.list_models()
        assert "unrolled" not in MODELS

    def test_impossible_sizes(self) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            UnrolledConfig(num_steps=0)
        with pytest.raises(ConfigError, match="readout_coils"):
            UnrolledConfig(readout_coils=-1)
