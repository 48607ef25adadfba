from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core_mri.errors import DataError
from downstream.classification.probe import (
    DEFAULT_PENALTY,
    METHODS,
    labelled_volumes,
    probe,
    volume_features,
)
from downstream.cohort import Cohort, load_cohort


def clusters(num_each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two separable classes in 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * num_each, 4, generator=generator)
    classes = torch.arange(2).repeat(num_each)
    features[:, 0] += 8 * classes - 4
    return features, classes


class TestProbe:
    @pytest.mark.parametrize("method", METHODS)
    def test_separable_classes_are_told_apart(self, method):
        test_x, test_y = clusters(10, 2)
        result = probe(method, clusters(12, 0), clusters(4, 1), test_x)
        assert result.scores.shape == (20, 2)
        assert (result.scores.argmax(1) == test_y).float().mean() > 0.95
        assert torch.allclose(result.scores.sum(1), torch.ones(20), atol=1e-5)

    def test_without_validation_volumes_the_penalty_is_the_default(self):
        nobody = (torch.zeros(0, 4), torch.zeros(0).long())
        note = probe("linear probe", clusters(5, 0), nobody, clusters(2, 1)[0]).note
        assert f"{DEFAULT_PENALTY:g}" in note


class TestLabelledVolumes:
    def test_classes_of_the_column(self, registry, sequences):
        found = labelled_volumes(load_cohort(registry, sequences), sequences)
        assert found.classes == ("T1", "T2")
        assert not found.left_out

    def test_one_class_is_too_few_and_the_counts_are_told(self, registry, sequences):
        task = replace(sequences, target="region")
        with pytest.raises(DataError, match=r"1 classes of region.*abdomen") as caught:
            labelled_volumes(load_cohort(registry, task), task)
        assert caught.value.code == "DATA-09"

    def test_a_class_without_test_volumes_is_left_out_and_counted(self, registry, sequences):
        cohort = load_cohort(registry, sequences)
        rare = tuple(replace(row, sequence="PD") for row in cohort.train[:2])
        found = labelled_volumes(Cohort(cohort.train + rare, cohort.val, cohort.test), sequences)
        assert found.left_out == {"PD": 2}
        assert "PD" not in found.classes

    def test_no_training_patient(self, registry, sequences):
        cohort = load_cohort(registry, sequences)
        with pytest.raises(DataError, match="training patients 0") as caught:
            labelled_volumes(Cohort((), cohort.val, cohort.test), sequences)
        assert caught.value.code == "DATA-09"


class TestVolumeFeatures:
    def test_mean_of_the_class_token_over_slices(self, registry, sequences, micro):
        from core_mri.slice_grid import image_to_square
        from downstream.cohort import read_image

        rows = load_cohort(registry, sequences).test[:2]
        features = volume_features(micro, registry, rows, 32)
        images = image_to_square(read_image(registry, rows[1]), 32)
        with torch.no_grad():
            expected = micro(images).cls.mean(0)
        assert torch.allclose(features[1], expected, atol=1e-5)

    def test_no_volume_gives_no_row(self, registry, micro):
        assert volume_features(micro, registry, (), 32).shape == (0, micro.embed_dim)
