"""Each bug found in MRI-CORE's published code, and the test that keeps it out of ours.

Numbers are those of the list in the research notes, section 2.7.

| bug | what happens there | test here |
| --- | --- | --- |
| 1 | the position table is never loaded | core_mri/test_foreign_weights.py::test_fixed_loads_the_position_table |
| 1 | and what that computes, on request | core_mri/test_foreign_weights.py::test_legacy_equals_the_published_code |
| 2 | features pass a random neck | core_mri/test_foreign_weights.py::test_features_do_not_pass_a_random_neck |
| 3 | mask tokens and heads stay random | core_mri/test_foreign_weights.py::test_decoder_of_sam_is_loaded_not_drawn |
| 3 | the decoder of SAM in full | core_mri/test_foreign_weights.py::test_equals_segment_anything |
| 4 | SAM and MedSAM lose relative positions | core_mri/test_sam.py::test_tensors_of_sam |
| 4 | and no tensor may be missing silently | core_mri/test_foreign_weights.py::test_every_misfit_is_named |
| 5 | the commands of the README fail | test_readme.py::test_blocks_run |
| 6 | no argument for the checkpoint | core_mri/test_foreign_weights.py::test_vit_equals_timm |
| 7 | a flag set to False is true | core_mri/test_reference_bugs.py::test_false_is_not_true |
| 8 | CUDA only; ViT-H cannot be built | core_mri/test_foreign_weights.py::test_every_size_can_be_built_without_cuda |
| 9 | the name of a folder decides what is loaded | core_mri/test_foreign_weights.py::test_the_path_decides_nothing |
| 10 | 512 pixels crash | core_mri/test_reference_bugs.py::test_every_size_answers_at_its_size |
| 11 | repeats use the same patients, no seed | downstream/test_segmentation_data.py::test_draws_and_seeds_differ |
| 12 | a constant slice becomes 0 / 0 | core_mri/test_reference_bugs.py::test_a_constant_slice_stays_finite |
| 12 | a file name without a hyphen crashes | core_mri/test_reference_bugs.py::test_a_constant_slice_stays_finite |
| 13 | a setting changed later changes the model | core_mri/test_reference_bugs.py::test_settings_cannot_change_under_a_model |
| 14 | empty slices are left out of the score | core_mri/test_reference_bugs.py::test_false_alarms_on_empty_slices_count |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.config import load_config
from core_mri.errors import ConfigError

TESTS = Path(__file__).parents[1]


def test_every_test_of_the_table_exists() -> None:
    named = re.findall(r"([\w/]+\.py)::(\w+)", __doc__ or "")
    assert len(named) == 18
    for file, test in named:
        assert f"def {test}(" in (TESTS / file).read_text(), f"{file}::{test}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    on: bool = True


def test_false_is_not_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("'on': false\n")
    assert load_config(Switch, path).on is False
    path.write_text("'on': 'no idea'\n")
    with pytest.raises(ConfigError, match="on"):
        load_config(Switch, path)
    words = ["segment", "weights", "scan.nii", "--automatic", "False", "--out", "mask.nii"]
    assert main(words) == 2
    assert "False" in capsys.readouterr().err


@torch.no_grad()
def test_every_size_answers_at_its_size() -> None:
    model = core_mri.create_model("sam_vit_micro").eval()
    for size in (64, 128, 512):
        box = torch.tensor([[4.0, 4.0, size / 2, size / 2]])
        logits = model(torch.rand(1, 1, size, size), boxes=box).logits
        assert logits.shape == (1, 1, size, size)


def test_a_constant_slice_stays_finite(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 300, (32, 32, 3)).astype(np.int16)
    array[..., 0], array[..., 2] = 0, 300
    core_mri.write_volume(core_mri.Volume(array, np.diag([1.0, 1, 5, 1])), tmp_path / "a b.nii")
    scan = core_mri.read_volume(tmp_path / "a b.nii")
    found = core_mri.Predictor(core_mri.create_model("vit_micro_patch8")).embed(scan)
    assert np.isfinite(found.cls).all()
    assert np.isfinite(found.patches).all()


@pytest.mark.parametrize("name", ["sam_vit_micro", "vit_micro_patch8"])
def test_settings_cannot_change_under_a_model(name: str) -> None:
    model = core_mri.create_model(name)
    config = getattr(model, "image_encoder", model).config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 1


def test_false_alarms_on_empty_slices_count() -> None:
    reference = np.zeros((4, 8, 8), bool)
    reference[1, 2:6, 2:6] = True
    estimate = reference.copy()
    estimate[3, 2:6, 2:6] = True
    assert core_mri.metrics.dice(reference, estimate) == pytest.approx(2 / 3)
