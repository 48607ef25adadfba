"""Weights that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import core_mri
from core_mri.errors import WeightsError
from core_mri.models.encoder import Encoder
from core_mri.weights.folder import CONFIG, TENSORS
from core_mri.weights.released import released_folder, released_names

TINY = "core-mri-tiny"


def test_by_name() -> None:
    """Features of the documented shapes, computed in float32 from the halves of the file."""
    encoder = core_mri.load_model(TINY, device="cpu")
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, 96, 64))
    assert features.cls.shape == (2, 192)
    assert features.patches.shape == (2, 12, 8, 192)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert torch.isfinite(features.patches).all()


def test_features_of_the_release() -> None:
    """Values of the day of release (torch 2.15, CPU), so that no change of code moves them."""
    ramp = torch.linspace(0, 1, 96)
    with torch.no_grad():
        found = core_mri.load_model(TINY, device="cpu")((ramp[:, None] * ramp)[None, None])
    assert found.cls[0, :4].tolist() == pytest.approx(
        [-0.0235, -0.1938, -1.5391, -0.2877], abs=1e-3
    )
    assert found.patches[0, 5, 7, :4].tolist() == pytest.approx(
        [1.6452, -0.3043, -0.1581, 0.3109], abs=1e-3
    )


def test_small_and_told() -> None:
    folder = released_folder(TINY)
    assert (folder / TENSORS).stat().st_size < 12e6
    card = (folder / "README.md").read_text()
    for word in ("CC-BY-SA-4.0", "masked autoencoder", "Research use only", "msd_hippocampus"):
        assert word in card
    for source in ("knee_mese", "renalsegmentor"):
        assert source not in card


def test_warns_of_what_it_never_saw() -> None:
    predictor = core_mri.Predictor(core_mri.load_model(TINY, device="cpu"))
    noise = np.random.default_rng(0).random((96, 96, 8)).astype(np.float32)
    judged = predictor.judge(core_mri.Volume(noise, np.eye(4)))
    assert judged is not None
    assert judged.score > judged.threshold


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path / TINY)
    monkeypatch.chdir(tmp_path)
    assert core_mri.load_model(TINY, device="cpu").config.embed_dim == 128


def test_half_of_the_size_and_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = core_mri.create_model("vit_micro_patch8")
    whole = core_mri.save_model(model, tmp_path / "whole") / TENSORS
    half = core_mri.save_model(model, tmp_path / "half", half=True)
    assert (half / TENSORS).stat().st_size < 0.55 * whole.stat().st_size
    images = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images).cls
        found = core_mri.load_model(half, device="cpu")(images).cls
    assert torch.allclose(found, expected, atol=2e-2)
    assert (half / CONFIG).is_file()


def test_an_unknown_name_is_told_the_known_ones() -> None:
    assert released_names() == [TINY]
    with pytest.raises(WeightsError, match=TINY):
        core_mri.load_model("core-mri-huge")
