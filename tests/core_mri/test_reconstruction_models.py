"""U-Net and VarNet: equal to fastMRI, finite on odd input, trainable, released as folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import core_mri
from core_mri.__main__ import main
from core_mri.errors import CoreMRIError, DataError, WeightsError
from core_mri.models import RECONSTRUCTION_MODELS, create_reconstructor
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.registry import UnetConfig, VarNetConfig
from core_mri.physics import crop_size, draw_mask, fft2c, mask_seed, zero_padding
from tests.core_mri.simulated_scan import bodies, coil_profiles, scan

REFERENCES = Path(__file__).parent.parent / "references"
MICRO = ("recon_unet_micro", "varnet_micro")


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gold", REFERENCES / "make_reconstruction_gold.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = reference()
GOLD = json.loads((REFERENCES / "reconstruction_gold.json").read_text())


def filled(config: UnetConfig | VarNetConfig, seed: int) -> Any:
    model = create_reconstructor(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    drawn = MAKER.weights(shapes, seed)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in drawn.items()})
    return model.eval()


def gold_unet() -> Any:
    return filled(UnetConfig(channels=4, pools=3), 1)


def gold_varnet() -> Any:
    return filled(VarNetConfig(cascades=3, channels=4, pools=3, map_channels=2, map_pools=2), 2)


def gold_scan(index: int) -> tuple[Tensor, Tensor, tuple[int, int], int]:
    """Masked k-space, mask of fastMRI's networks, size of the image, lines of the center."""
    facts = MAKER.CHAINS[index]
    kspace = MAKER.samples(index, facts["coils"], facts["matrix"], facts["padding"])
    drawn = draw_mask(
        "random",
        facts["matrix"],
        center_fractions=[MAKER.FRACTION],
        accelerations=[MAKER.ACCELERATION],
        seed=mask_seed(MAKER.NAME),
    )
    mask = zero_padding(drawn.mask.reshape(-1), *facts["padding"])
    size = crop_size(facts["size"], facts["matrix"][1])
    return torch.from_numpy(kspace) * mask, mask, size, drawn.num_low_frequencies


def assert_gold(ours: Tensor, name: str, index: int) -> None:
    expected = torch.tensor(GOLD[name][index])
    found = torch.tensor(MAKER.rounded(ours.detach().numpy()))
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


class TestEqualToFastMRI:
    def test_names_of_tensors(self) -> None:
        unet, varnet = GOLD["keys"]
        assert (len(unet), len(varnet)) == (24, 324)
        assert sorted(core_mri.create_model("recon_unet_32").state_dict()) == unet
        assert sorted(core_mri.create_model("varnet").state_dict()) == varnet

    @pytest.mark.parametrize("index", range(len(MAKER.NETWORK_SHAPES)))
    def test_unet_alone(self, index: int) -> None:
        images = torch.from_numpy(MAKER.images(3, MAKER.NETWORK_SHAPES[index]))
        assert_gold(gold_unet()(images), "unet", index)

    @pytest.mark.parametrize("index", range(len(MAKER.CHAINS)))
    def test_unet_chain(self, index: int) -> None:
        kspace, mask, size, _ = gold_scan(index)
        assert_gold(gold_unet().reconstruct(kspace, mask, size=size), "unet_chain", index)

    @pytest.mark.parametrize("index", [0, 1])
    def test_varnet_chain(self, index: int) -> None:
        kspace, mask, size, low = gold_scan(index)
        images = gold_varnet().reconstruct(kspace, mask, size=size, num_low=low)
        assert_gold(images, "varnet_chain", index)

    @pytest.mark.parametrize("index", [0, 1])
    def test_varnet_finds_the_center(self, index: int) -> None:
        kspace, mask, size, _ = gold_scan(index)
        images = gold_varnet().reconstruct(kspace, mask, size=size)
        assert_gold(images, "varnet_test", index)

    def test_with_gradients_too(self) -> None:
        """Training takes other kernels than `reconstruct`; the values are the same."""
        kspace, mask, size, low = gold_scan(1)
        images = gold_varnet().images(kspace, mask, size=size, num_low=low)
        assert images.requires_grad
        assert_gold(images, "varnet_chain", 1)


@pytest.mark.parametrize("name", MICRO)
class TestReconstructor:
    def model(self, name: str) -> Any:
        torch.manual_seed(0)
        model = core_mri.create_model(name)
        assert isinstance(model, Reconstructor)
        return model.eval()

    def test_slices_do_not_see_each_other(self, name: str) -> None:
        first, mask, _, _ = scan(seed=3)
        second = scan(seed=3)[0].flip(-2) * 0.1
        model, both = self.model(name), torch.stack([first, second])
        together = model.reconstruct(both, mask, size=(90, 70))
        alone = torch.cat([model.reconstruct(x[None], mask, size=(90, 70)) for x in both])
        assert together.shape == (2, 90, 70)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.max()))

    @pytest.mark.parametrize("exponent", [-80, -20, 60])
    def test_scale_of_the_data(self, name: str, exponent: int) -> None:
        """Scanners differ by orders of magnitude; squares of such values leave float32."""
        kspace, mask, _, _ = scan()
        model = self.model(name)
        expected = model.reconstruct(kspace[None], mask, size=(96, 80))
        scaled = model.reconstruct(kspace[None] * 2.0**exponent, mask, size=(96, 80))
        torch.testing.assert_close(scaled * 2.0**-exponent, expected, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("coils", [1, 4])
    @pytest.mark.parametrize(("height", "width"), [(61, 47), (33, 64)])
    def test_odd_sides_and_one_coil(self, name: str, coils: int, height: int, width: int) -> None:
        kspace, mask, _, _ = scan(coils, height, width, center=0.3)
        images = self.model(name).reconstruct(kspace[None], mask, size=(height, width))
        assert images.shape == (1, height, width)
        assert bool(torch.isfinite(images).all())

    def test_an_empty_slice_is_zero(self, name: str) -> None:
        kspace, mask, _, _ = scan()
        both = torch.stack([kspace, torch.zeros_like(kspace)])
        images = self.model(name).reconstruct(both, mask, size=(96, 80))
        assert float(images[0].abs().max()) > 0
        assert torch.equal(images[1], torch.zeros(96, 80))

    def test_an_empty_coil_changes_nothing_else(self, name: str) -> None:
        kspace, mask, _, _ = scan(4)
        model = self.model(name)
        more = torch.cat([kspace, torch.zeros_like(kspace[:1])])
        alone = model.reconstruct(kspace[None], mask, size=(96, 80))
        torch.testing.assert_close(
            model.reconstruct(more[None], mask, size=(96, 80)), alone, rtol=1e-4, atol=1e-5
        )

    def test_gradients_are_finite(self, name: str) -> None:
        kspace, mask, _, _ = scan(3, 40, 32, center=0.3)
        both = torch.stack([kspace, torch.zeros_like(kspace)])
        model = self.model(name)
        model.images(both, mask, size=(40, 32)).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(grads) == len(list(model.parameters()))
        assert all(bool(torch.isfinite(g).all()) for g in grads)
        assert sum(float(g.abs().sum()) for g in grads) > 0


class TestTooSmall:
    def test_fewer_than_two_pixels_at_the_bottom(self) -> None:
        kspace, mask, _, _ = scan(2, 8, 20, center=0.3)
        with pytest.raises(WeightsError) as caught:
            core_mri.create_model("recon_unet_micro").reconstruct(kspace[None], mask, size=(8, 8))
        assert caught.value.code == "WEIGHTS-11"


class TestMasks:
    def test_each_slice_may_have_its_own(self) -> None:
        model = core_mri.create_model("varnet_micro").eval()
        scans = [scan(seed=seed)[:2] for seed in (3, 5)]
        kspace = torch.stack([k for k, _ in scans])
        masks = torch.stack([m for _, m in scans])[:, None, None]
        together = model.reconstruct(kspace, masks, size=(96, 80))
        alone = [model.reconstruct(k[None], m, size=(96, 80)) for k, m in scans]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_lines_as_points(self) -> None:
        """A mask of points that are lines goes through both transforms to the same image."""
        kspace, mask, _, _ = scan()
        model = core_mri.create_model("varnet_micro").eval()
        lines = model.reconstruct(kspace[None], mask, size=(96, 80))
        points = model.reconstruct(kspace[None], mask.expand(96, 80), size=(96, 80))
        torch.testing.assert_close(points, lines, rtol=1e-4, atol=1e-5)

    def test_no_center(self) -> None:
        kspace, mask, _, _ = scan()
        mask[39:42] = False
        with pytest.raises(DataError) as caught:
            core_mri.create_model("varnet_micro").reconstruct(kspace[None], mask, size=(96, 80))
        assert caught.value.code == "DATA-21"
        unet = core_mri.create_model("recon_unet_micro").eval()
        assert bool(unet.reconstruct(kspace[None] * mask, mask, size=(96, 80)).isfinite().all())


class TestTraining:
    def test_varnet_learns(self) -> None:
        """A few steps on one simulated slice bring the image nearer to the truth."""
        torch.manual_seed(0)
        image, maps = bodies(48, 40), coil_profiles(4, 48, 40)
        mask = torch.arange(40) % 3 == 0
        mask[14:26] = True
        kspace, target = (fft2c(maps * image) * mask)[None], image.abs()[None]
        model = core_mri.create_model("varnet_micro", cascades=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = (model.images(kspace, mask, size=(48, 40)) - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]

    def test_dropout_only_in_training(self) -> None:
        model = core_mri.create_model("recon_unet_micro", dropout=0.5)
        x = torch.rand(1, 1, 32, 32)
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


class TestFolders:
    @pytest.mark.parametrize("name", MICRO)
    def test_round_trip(self, name: str, tmp_path: Path) -> None:
        model = core_mri.create_model(name).eval()
        core_mri.save_model(model, tmp_path, {"summary": "Random weights."})
        loaded = core_mri.load_model(tmp_path, device="cpu")
        assert isinstance(loaded, Reconstructor)
        assert loaded.config == model.config
        kspace, mask, _, _ = scan()
        ours, theirs = (m.reconstruct(kspace[None], mask, size=(80, 80)) for m in (model, loaded))
        assert torch.equal(ours, theirs)
        card = (tmp_path / "README.md").read_text()
        assert "core-mri reconstruct" in card
        assert "mri-reconstruction" in card
        assert "Random weights." in card

    @pytest.mark.parametrize("verb", ["embed", "segment", "export"])
    def test_verbs_of_images(self, verb: str, tmp_path: Path, capsys: Any) -> None:
        core_mri.save_model(core_mri.create_model("varnet_micro"), tmp_path / "w")
        scan_path = tmp_path / "scan.nii"
        core_mri.write_volume(core_mri.Volume(np.ones((8, 8, 2), np.float32), np.eye(4)), scan_path)
        words = {
            "embed": [str(scan_path), "--out", str(tmp_path / "e.npz")],
            "segment": [str(scan_path), "--out", str(tmp_path / "m.nii")],
            "export": ["--format", "torchscript", "--out", str(tmp_path / "g.pt")],
        }
        assert main([verb, str(tmp_path / "w"), *words[verb]]) == 1
        assert "WEIGHTS-02" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("key", "value"),
        [("sizes", {"channels": "many"}), ("network", "other"), ("sizes", {"width": 3})],
    )
    def test_damaged_config(self, key: str, value: Any, tmp_path: Path) -> None:
        core_mri.save_model(core_mri.create_model("varnet_micro"), tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(tmp_path, device="cpu")
        assert caught.value.code == "WEIGHTS-01"

    def test_listed(self) -> None:
        patterns = ("recon_*", "varnet*", "unrolled*")
        listed = {name for pattern in patterns for name in core_mri.list_models(pattern)}
        assert listed == set(RECONSTRUCTION_MODELS)


class TestCheckpoints:
    def save(self, content: object, path: Path) -> str:
        torch.save(content, path)
        return str(path)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_unet(self, wrapped: bool, tmp_path: Path) -> None:
        """A plain state dict, and a checkpoint of Lightning."""
        model = gold_unet()
        tensors: dict[str, Any] = dict(model.state_dict())
        if wrapped:
            named = {f"unet.{name}": tensor for name, tensor in tensors.items()}
            tensors = {"state_dict": named, "epoch": 3, "hyper_parameters": {"chans": 4}}
        source = self.save(tensors, tmp_path / "unet.pt")
        loaded: Any = core_mri.load_model(f"fastmri-unet:{source}", device="cpu")
        x = torch.rand(1, 1, 40, 40)
        assert torch.equal(loaded(x), model(x))
        assert loaded.config == UnetConfig(channels=4, pools=3)
        assert loaded.coils == "any"
        single = core_mri.load_model(f"fastmri-unet:{source}", device="cpu", coils="single")
        core_mri.save_model(single, tmp_path / "folder")  # type: ignore[arg-type]
        again: Any = core_mri.load_model(tmp_path / "folder", device="cpu")
        assert again.coils == "single"

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_varnet(self, wrapped: bool, tmp_path: Path) -> None:
        model = gold_varnet()
        tensors: dict[str, Any] = dict(model.state_dict())
        if wrapped:
            named = {f"varnet.{name}": tensor for name, tensor in tensors.items()}
            tensors = {"state_dict": named | {"loss.w": torch.ones(1, 1, 7, 7)}}
        source = self.save(tensors, tmp_path / "varnet.pt")
        loaded: Any = core_mri.load_model(f"fastmri-varnet:{source}", device="cpu")
        assert loaded.config == model.config
        assert loaded.card["dropped"] == (["loss.w"] if wrapped else [])
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)

    @pytest.mark.parametrize("scheme", ["fastmri-unet", "fastmri-varnet"])
    def test_another_network(self, scheme: str, tmp_path: Path) -> None:
        other = gold_varnet() if scheme == "fastmri-unet" else gold_unet()
        source = self.save(other.state_dict(), tmp_path / "other.pt")
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(f"{scheme}:{source}")
        assert caught.value.code == "WEIGHTS-02"
        assert str(tmp_path) in str(caught.value)

    def test_every_misfit_is_named(self, tmp_path: Path) -> None:
        tensors = dict(gold_unet().state_dict())
        tensors["extra"] = torch.zeros(2)
        del tensors["conv.layers.4.weight"]
        tensors["conv.layers.0.weight"] = torch.zeros(3)
        source = self.save(tensors, tmp_path / "unet.pt")
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(f"fastmri-unet:{source}")
        for part in ("missing conv.layers.4", "unexpected extra", "conv.layers.0.weight is [3]"):
            assert part in str(caught.value)

    def test_two_channels_do_not_reconstruct(self) -> None:
        kspace, mask, _, _ = scan()
        model = create_reconstructor(UnetConfig(channels=4, in_channels=2, out_channels=2))
        with pytest.raises(CoreMRIError) as caught:
            model.reconstruct(kspace[None], mask, size=(80, 80))
        assert caught.value.code == "WEIGHTS-11"

    def test_options(self, tmp_path: Path) -> None:
        source = self.save(gold_unet().state_dict(), tmp_path / "unet.pt")
        for options in ({"coils": "two"}, {"layout": "vit"}):
            with pytest.raises(WeightsError) as caught:
                core_mri.load_model(f"fastmri-unet:{source}", **options)
            assert caught.value.code == "WEIGHTS-03"
