from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core_mri.models import create_model
from core_mri.models.encoder import Encoder
from core_mri.weights.fingerprint import weights_fingerprint
from downstream.adapt import (
    adapt,
    architecture,
    learning_rates,
    random_twin,
)
from downstream.lora import merge_lora
from downstream.recipe import Recipe

ADAPTATIONS = ["frozen", "head", "adapters", "lora", "full"]


def moving(encoder: Encoder) -> list[str]:
    return [name for name, p in encoder.named_parameters() if p.requires_grad]


class TestAdapt:
    @pytest.mark.parametrize("adaptation", ADAPTATIONS)
    @torch.no_grad()
    def test_starts_as_the_encoder_it_was(self, micro, adaptation):
        images = torch.rand(2, 1, 32, 32)
        adapted = adapt(micro, adaptation)
        assert torch.equal(adapted.eval()(images).patches, micro(images).patches)
        changed = [p.add_(torch.randn_like(p)) for p in adapted.parameters() if p.requires_grad]
        differs = not torch.allclose(adapted(images).patches, micro(images).patches, atol=1e-3)
        assert differs is bool(changed)

    @pytest.mark.parametrize(
        ("adaptation", "names"),
        [("frozen", ()), ("head", ()), ("adapters", (".adapter.",)), ("lora", ("0.a", "0.b"))],
    )
    def test_only_named_parameters_move(self, micro, adaptation, names):
        adapted = adapt(micro, adaptation)
        own = {name for name, _ in micro.named_parameters()}
        found = moving(adapted)
        assert not own & set(found)
        assert all(any(part in name for part in names) for name in found)
        assert bool(found) is bool(names) is adapted.training

    def test_full_moves_everything(self, micro):
        assert moving(adapt(micro, "full")) == [name for name, _ in micro.named_parameters()]

    def test_as_many_as_the_sizes_say(self, micro):
        recipe = Recipe(lora_rank=3, adapter_ratio=0.5)
        counts = {
            name: sum(p.numel() for p in adapt(micro, name, recipe).parameters() if p.requires_grad)
            for name in ("adapters", "lora")
        }
        width, depth = micro.embed_dim, micro.depth
        assert counts["lora"] == depth * 2 * 2 * 3 * width
        assert counts["adapters"] == depth * 2 * (2 * width * width // 2 + width // 2 + width)

    def test_same_seed_same_start_and_the_global_random_state_stays(self, micro):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first, again, other = (adapt(micro, "lora", seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.rand(3), expected)
        assert weights_fingerprint(first) == weights_fingerprint(again)
        assert weights_fingerprint(first) != weights_fingerprint(other)

    @pytest.mark.parametrize("positions", ["all", "rotary"])
    @torch.no_grad()
    def test_merged_lora_is_a_plain_encoder_with_the_same_answers(self, micro, positions):
        encoder = Encoder(replace(micro.config, positions=positions)).eval()
        adapted = adapt(encoder, "lora", Recipe(lora_rank=2, lora_alpha=8)).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        images = torch.rand(2, 1, 32, 32)
        before = adapted(images).patches
        assert not torch.allclose(before, encoder(images).patches, atol=1e-3)
        merge_lora(adapted)
        assert torch.allclose(adapted(images).patches, before, atol=1e-6)
        assert adapted.state_dict().keys() == encoder.state_dict().keys()
        keys = slice(micro.embed_dim, 2 * micro.embed_dim)
        for name in ("0", "1"):
            ours = adapted.vit.blocks[int(name)].attn.qkv.weight
            assert torch.equal(ours[keys], encoder.vit.blocks[int(name)].attn.qkv.weight[keys])

    def test_deeper_layers_move_faster(self, micro):
        recipe = Recipe(encoder_learning_rate=1.0, layer_decay=0.5)
        adapted = adapt(micro, "full")
        rates = {
            id(p): rate for rate, group in learning_rates(adapted, "full", recipe) for p in group
        }
        by_name = {name: rates[id(p)] for name, p in adapted.named_parameters()}
        assert len(by_name) == len(rates)
        assert by_name["vit.norm.weight"] == 1
        assert by_name["vit.blocks.1.mlp.fc1.weight"] == 0.5
        assert by_name["vit.blocks.0.attn.qkv.weight"] == 0.25
        assert by_name["vit.patch_embed.proj.weight"] == by_name["vit.pos_embed"] == 0.125

    def test_the_original_is_left_alone(self, micro):
        adapted = adapt(micro, "full")
        with torch.no_grad():
            adapted.mask_token.add_(1)
        assert not torch.equal(adapted.mask_token, micro.mask_token)


class TestRandomTwin:
    def test_same_architecture_other_weights_same_seed_same_twin(self, micro):
        twin, again = random_twin(micro, 0), random_twin(micro, 0)
        assert twin.config == micro.config
        assert weights_fingerprint(twin) == weights_fingerprint(again)
        assert len({weights_fingerprint(e) for e in (twin, micro, random_twin(micro, 1))}) == 3

    def test_the_global_random_state_is_untouched(self, micro):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        random_twin(micro, 0)
        assert torch.equal(torch.rand(3), expected)


class TestArchitecture:
    def test_released_sizes_have_their_name(self, micro):
        assert architecture(create_model("vit_micro_patch8", image_size=96)) == "vit_micro_patch8"
        assert architecture(micro) == "vit_32x2_patch8"
