from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import core_mri
from core_mri.errors import WeightsError
from core_mri.models.heads import SegmentationHead
from core_mri.models.segmenter import Segmenter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = core_mri.create_model("vit_micro_patch8")
    card = {
        "summary": "A test.",
        "data": {"slices": 3},
        "sources": [{"name": "a|b", "licence": "CC0-1.0"}],
    }
    return core_mri.save_model(model, tmp_path / "weights", card)


class TestRoundTrip:
    @torch.no_grad()
    def test_encoder_gives_the_same_features(self, tmp_path: Path) -> None:
        model = core_mri.create_model("vit_micro_patch8", num_registers=2, layer_scale=1e-5).eval()
        core_mri.save_model(model, tmp_path)
        images = torch.rand(2, 1, 64, 64)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        assert torch.equal(loaded(images).patches, model(images).patches)
        assert not loaded.training

    @torch.no_grad()
    def test_segmenter_keeps_its_labels(self, tmp_path: Path) -> None:
        model = Segmenter(
            core_mri.create_model("vit_micro_patch8"),
            SegmentationHead(128, 2, 1, patch_size=8),
            depths=[3],
            labels={1: "liver"},
            image_size=64,
        ).eval()
        core_mri.save_model(model, tmp_path)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        images = torch.rand(1, 1, 64, 64)
        assert torch.equal(loaded(images), model(images))
        assert loaded.labels == {1: "liver"}

    def test_a_run_folder_is_a_source(self, folder: Path) -> None:
        assert core_mri.load_model(folder.parent, device="cpu").embed_dim == 128

    def test_card_says_what_is_known_and_what_is_not(self, folder: Path) -> None:
        text = (folder / "README.md").read_text()
        assert "A test." in text
        assert "| a/b | CC0-1.0 |" in text.replace('"', "")
        assert "Not recorded." in text
        assert json.loads((folder / "config.json").read_text())["sha256"] in text

    def test_licence_of_the_training_data(self, tmp_path: Path) -> None:
        facts = {
            "licence": "CC-BY-4.0 AND CC-BY-NC-4.0",
            "terms": {"commercial": "no", "attribution": "yes"},
            "limits": ["Licence of the training data: No commercial use."],
        }
        core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path, facts)
        text = (tmp_path / "README.md").read_text()
        front = text.split("---")[1]
        assert "license: other\nlicense_name: CC-BY-4.0 AND CC-BY-NC-4.0\n" in front
        assert "- commercial: no" in text
        assert "- Licence of the training data: No commercial use." in text.split("## Limits")[1]

    def test_a_single_licence_is_written_as_hubs_do(self, tmp_path: Path) -> None:
        model = core_mri.create_model("vit_micro_patch8")
        core_mri.save_model(model, tmp_path, {"licence": "CC-BY-4.0"})
        assert "license: cc-by-4.0\n" in (tmp_path / "README.md").read_text()


class TestBadFolders:
    def failure(self, folder: Path) -> WeightsError:
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(folder, device="cpu")
        assert str(folder) in str(caught.value)
        return caught.value

    def test_missing(self, tmp_path: Path) -> None:
        assert self.failure(tmp_path / "none").code == "WEIGHTS-01"

    def test_truncated_tensors(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert self.failure(folder).code == "WEIGHTS-01"

    def test_changed_tensors(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert "SHA-256" in str(self.failure(folder))

    def test_each_misfit_is_named(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors["mask_token"]
        tensors["vit.norm.bias"] = torch.zeros(3)
        tensors["extra"] = torch.zeros(1)
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        from core_mri.runs import file_sha256

        config["sha256"] = file_sha256(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        error = self.failure(folder)
        assert error.code == "WEIGHTS-02"
        for part in (
            "missing mask_token",
            "unexpected extra",
            "vit.norm.bias is [3], expected [128]",
        ):
            assert part in error.message

    @pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1, "sha256": ""}'])
    def test_other_configurations(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        assert self.failure(folder).code == "WEIGHTS-01"

    def test_unknown_option(self, folder: Path) -> None:
        with pytest.raises(WeightsError, match="layout"):
            core_mri.load_model(folder, layout="vit")
