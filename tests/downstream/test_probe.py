from __future__ import annotations

import pytest
import torch

from downstream.classification.calibration import LIMITS, fit_temperature, with_temperature
from downstream.classification.probe import DEFAULT_PENALTY, probe

METHODS = ("linear probe", "knn")


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
        assert result.test.shape == (20, 2)
        assert result.val.shape == (8, 2)
        assert (result.test.argmax(1) == test_y).float().mean() > 0.95
        assert torch.allclose(result.test.sum(1), torch.ones(20), atol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_without_validation_examples_there_is_a_default(self, method):
        nobody = (torch.zeros(0, 4), torch.zeros(0).long())
        found = probe(method, clusters(5, 0), nobody, clusters(2, 1)[0])
        assert found.val.shape == (0, 2)
        if method == "linear probe":
            assert f"{DEFAULT_PENALTY:g}" in found.note


class TestTemperature:
    def test_finds_the_one_that_was_put_in(self):
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(20_000, 3, generator=generator)
        truth = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
        for factor in (0.5, 1.0, 3.0):
            stated = torch.softmax(factor * logits, 1)
            assert fit_temperature(stated, truth) == pytest.approx(factor, rel=0.05)

    def test_order_of_classes_stays(self):
        stated = torch.softmax(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), 1)
        cooled = with_temperature(stated, 3.0)
        assert torch.equal(cooled.argsort(1), stated.argsort(1))
        assert torch.allclose(cooled.sum(1), torch.ones(50), atol=1e-6)
        assert torch.equal(with_temperature(stated, 1.0), stated)

    def test_few_examples_do_not_send_it_to_a_limit_beyond(self):
        sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        right = fit_temperature(sure, torch.tensor([0, 1]))
        wrong = fit_temperature(sure, torch.tensor([1, 0]))
        assert LIMITS[0] <= right < 1 < wrong <= LIMITS[1]
        assert torch.isfinite(with_temperature(sure, right)).all()
        assert fit_temperature(torch.zeros(0, 2), torch.zeros(0).long()) == 1.0
