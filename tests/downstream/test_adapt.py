from __future__ import annotations

import pytest
import torch

from core_mri.models import create_model
from downstream.adapt import adapt, architecture, random_twin, weights_fingerprint


class TestAdapt:
    @pytest.mark.parametrize(
        ("adaptation", "moves"), [("frozen", False), ("head", False), ("full", True)]
    )
    def test_only_full_moves_the_encoder(self, micro, adaptation, moves):
        adapted = adapt(micro, adaptation)
        assert all(p.requires_grad is moves for p in adapted.parameters())
        assert adapted.training is moves

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
