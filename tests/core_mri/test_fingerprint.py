"""Fingerprints: the same for the same function, another for any other tensor or size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from core_mri.models import SAM_MODELS, create_model
from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.registry import SamConfig
from core_mri.models.sam import SamEncoder
from core_mri.weights.fingerprint import weights_fingerprint

MICRO = SAM_MODELS["sam_vit_micro"]


def sam(config: SamConfig, state: dict[str, torch.Tensor] | None = None) -> PromptableSegmenter:
    torch.manual_seed(0)
    model = PromptableSegmenter(SamEncoder(config), image_size=128, channels=config.out_channels)
    model.load_state_dict(state or model.state_dict())
    return model


def necked(depths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    encoder = NeckedEncoder(create_model("vit_micro_patch8"), depths=depths, channels=32)
    return PromptableSegmenter(encoder, image_size=64, channels=32)


def test_same_weights_have_the_same() -> None:
    assert weights_fingerprint(sam(MICRO)) == weights_fingerprint(sam(MICRO))
    assert weights_fingerprint(necked((0, -1))) == weights_fingerprint(necked((0, -1)))


def test_one_tensor_changes_it() -> None:
    model = sam(MICRO)
    before = weights_fingerprint(model)
    with torch.no_grad():
        next(model.mask_decoder.parameters()).view(-1)[0] += 1e-3
    assert weights_fingerprint(model) != before


def test_sizes_that_no_tensor_shows_change_it() -> None:
    """Equal tensors, other windows, paddings or depths."""
    model = sam(MICRO)
    others = (
        replace(MICRO, normalize_padding=True),
        replace(MICRO, global_blocks=(1,), relative_positions=False),
        replace(MICRO, global_blocks=(2,), relative_positions=False),
        replace(MICRO, window_size=5, relative_positions=False),
    )
    found = [weights_fingerprint(model), weights_fingerprint(sam(others[0], model.state_dict()))]
    bare = sam(others[1])
    found += [weights_fingerprint(sam(config, bare.state_dict())) for config in others[1:]]
    found += [weights_fingerprint(necked(depths)) for depths in ((0, -1), (1, -1))]
    assert len(set(found)) == len(found)
