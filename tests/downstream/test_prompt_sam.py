"""SAM whose prompt encoder and mask decoder go on training; weights are random, 32 px."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, WeightsError
from core_mri.models import create_sam
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.registry import SAM_MODELS
from core_mri.models.sam import SamEncoder
from downstream.adapt import architecture, random_twin
from downstream.config import Task
from downstream.evaluation.suite import finetune, rehearse
from downstream.prompting.train import PromptTrainer
from tests.downstream.test_prompt_training import run, shapes


@pytest.fixture(scope="module")
def sam() -> PromptableSegmenter:
    torch.manual_seed(0)
    return create_sam(replace(SAM_MODELS["sam_vit_micro"], image_size=32)).eval()


@pytest.fixture
def trainer(sam, recipe):
    def make(**changes) -> PromptTrainer:
        values = {
            "adaptation": "frozen",
            "recipe": replace(recipe, learning_rate=2e-3, prompt_rounds=2),
            "steps": 3,
            "seed": 0,
            "name": "ellipses",
        } | changes
        return PromptTrainer(sam, [shapes(8, 0)], [shapes(4, 1)], **values)

    return make


class TestTraining:
    def test_only_the_decoder_moves(self, trainer, sam: PromptableSegmenter) -> None:
        before = {name: t.clone() for name, t in sam.state_dict().items()}
        fitted = trainer()
        run(fitted)
        end = fitted.model.state_dict()
        moved = {name for name, t in end.items() if not torch.equal(t, before[name])}
        assert {name.partition(".")[0] for name in moved} == {"prompt_encoder", "mask_decoder"}
        assert all(torch.equal(t, before[name]) for name, t in sam.state_dict().items())

    def test_kept_embeddings_change_nothing(self, trainer, recipe) -> None:
        small = replace(recipe, learning_rate=2e-3, prompt_rounds=2, cache_gb=0.0)
        assert run(trainer(recipe=small)) == pytest.approx(run(trainer()), rel=1e-5)

    def test_starts_from_its_own_decoder(self, trainer, sam: PromptableSegmenter) -> None:
        """The first answer is SAM's: nothing was drawn anew."""
        fitted = trainer()
        image, box = torch.rand(1, 1, 32, 32), torch.tensor([[4.0, 5.0, 20.0, 22.0]])
        with torch.no_grad():
            own, start = (m.decode(m.embed_image(image), boxes=box) for m in (fitted.model, sam))
        assert torch.equal(own.logits, start.logits)

    def test_a_resumed_run_repeats_the_other(self, trainer) -> None:
        losses = run(whole := trainer())
        half = trainer()
        half.step(0)
        resumed = trainer()
        resumed.restore(half.state())
        assert run(resumed, 1) == losses[1:]
        assert whole.num_moving == resumed.num_moving

    @pytest.mark.parametrize("change", [{"adaptation": "full"}, {"adaptation": "lora"}])
    def test_an_encoder_that_should_move(self, trainer, change: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="adaptation frozen or head"):
            trainer(**change)

    def test_images_of_another_size(self, trainer, recipe) -> None:
        with pytest.raises(ConfigError, match=r"image_size\s+32, got frozen and 64"):
            trainer(recipe=replace(recipe, image_size=64))


def test_the_twin_is_a_random_sam(sam: PromptableSegmenter) -> None:
    twin = random_twin(sam, 1)
    assert architecture(twin) == architecture(sam) == "sam_vit_micro"
    names = [n for n, t in twin.state_dict().items() if not torch.equal(t, sam.state_dict()[n])]
    assert any("image_encoder" in name for name in names)
    assert any("mask_decoder" in name for name in names)


def test_run_folder(sam, finetune_config, organs: Task, recipe, tmp_path: Path) -> None:
    weights = core_mri.save_model(sam, tmp_path / "sam")
    task = Task(name="liver", kind="prompting", where=organs.where, labels=organs.labels)
    config = finetune_config(
        weights=str(weights), task=task, steps=2, recipe=replace(recipe, prompt_rounds=2)
    )
    assert any("sam_vit_micro on cpu" in line for line in rehearse(config))
    out = finetune(config)
    model = core_mri.load_model(out, device="cpu")
    assert isinstance(model, PromptableSegmenter)
    assert isinstance(model.image_encoder, SamEncoder)
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert {cell["weights"] for cell in cells} == {"sam", "random sam_vit_micro"}
    with pytest.raises(WeightsError, match="WEIGHTS-02"):
        finetune(replace(config, task=organs, out=tmp_path / "other"))
