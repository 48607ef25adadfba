from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from core_mri.errors import ConfigError, DataError
from downstream.adapt import weights_fingerprint
from downstream.segmentation.train import FrozenFeatures, LabelledSlices, Trainer, encode

LABELS = {1: "bright square"}


def squares(num_slices: int, seed: int) -> LabelledSlices:
    """A bright square somewhere, on noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(num_slices, 1, 32, 32, generator=generator)
    masks = torch.zeros(num_slices, 32, 32, dtype=torch.int64)
    for image, mask, corner in zip(
        images, masks, torch.randint(4, 16, (num_slices, 2), generator=generator), strict=True
    ):
        row, column = corner.tolist()
        image[0, row : row + 10, column : column + 10] += 0.6
        mask[row : row + 10, column : column + 10] = 1
    return LabelledSlices(images, masks)


@pytest.fixture
def trainer(micro, recipe):
    """Build a Trainer on bright squares; keyword arguments change it."""

    def make(**changes) -> Trainer:
        values = {
            "encoder": micro,
            "training": [squares(6, 0)],
            "validation": [squares(4, 1)],
            "labels": LABELS,
            "adaptation": "frozen",
            "recipe": recipe,
            "steps": 6,
            "seed": 0,
            "name": "squares",
        } | changes
        return Trainer(
            values.pop("encoder"), values.pop("training"), values.pop("validation"), **values
        )

    return make


def run(trainer: Trainer, first: int = 0, last: int | None = None) -> list[dict[str, float]]:
    return [trainer.step(i) for i in range(first, trainer.steps if last is None else last)]


class TestLearning:
    def test_a_bright_square_is_found_in_other_slices(self, trainer, recipe):
        fitted = trainer(steps=60, recipe=replace(recipe, learning_rate=1e-2, batch_size=8))
        run(fitted)
        fitted.finish()
        assert fitted.best_score > 0.8

    def test_the_best_validated_step_is_kept(self, trainer, recipe):
        fitted = trainer(steps=12, recipe=replace(recipe, validate_every=3))
        run(fitted)
        scores = {p.step: p.validation_dice for p in fitted.curve if p.validation_dice is not None}
        assert fitted.best_score == max(scores.values())
        assert scores[fitted.best_step] == fitted.best_score
        fitted.finish()
        assert fitted._validate(99) == pytest.approx(fitted.best_score)

    def test_without_validation_the_last_step_is_kept(self, trainer):
        fitted = trainer(validation=[])
        run(fitted)
        last = copy.deepcopy(fitted.segmenter.state_dict())
        kept = fitted.finish().state_dict()
        assert fitted.best_step == fitted.steps
        assert all(torch.equal(last[name], kept[name]) for name in last)


class TestWhatMoves:
    @pytest.mark.parametrize(
        ("adaptation", "same"), [("frozen", True), ("head", True), ("full", False)]
    )
    def test_only_full_changes_the_encoder(self, trainer, micro, adaptation, same):
        before = weights_fingerprint(micro)
        fitted = trainer(adaptation=adaptation, steps=3)
        run(fitted)
        assert (weights_fingerprint(fitted.segmenter.encoder) == before) is same
        assert weights_fingerprint(micro) == before

    def test_a_twin_gets_the_same_head_and_the_same_batches(self, trainer, micro):
        from downstream.adapt import random_twin

        ours, theirs = trainer(), trainer(encoder=random_twin(micro, 0))
        heads = [t.segmenter.head.state_dict() for t in (ours, theirs)]
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
        assert torch.equal(ours._batch(2)[1], theirs._batch(2)[1])


class TestDeterminism:
    @pytest.mark.parametrize("adaptation", ["frozen", "head", "full"])
    def test_same_seed_same_losses(self, trainer, adaptation):
        assert run(trainer(adaptation=adaptation)) == run(trainer(adaptation=adaptation))

    @pytest.mark.parametrize("adaptation", ["frozen", "full"])
    def test_a_resumed_run_repeats_the_uninterrupted_one(self, trainer, adaptation):
        whole = trainer(adaptation=adaptation)
        run(whole)
        first = trainer(adaptation=adaptation)
        run(first, last=3)
        second = trainer(adaptation=adaptation)
        second.restore(copy.deepcopy(first.state()))
        run(second, first=3)
        assert second.curve == whole.curve
        ours, theirs = second.finish().state_dict(), whole.finish().state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestFrozenFeatures:
    def test_cached_and_recomputed_features_are_equal(self, micro):
        images = squares(5, 2).images
        index = torch.tensor([3, 0])
        cached = FrozenFeatures(micro, images, (0, 1), 1e9)
        recomputed = FrozenFeatures(micro, images, (0, 1), 0)
        assert cached._levels is not None
        assert recomputed._levels is None
        for ours, theirs in zip(cached.levels(index), recomputed.levels(index), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)

    def test_encode_in_batches_is_encode_at_once(self, micro, monkeypatch):
        images = squares(5, 2).images
        whole = encode(micro, images, (1,))
        monkeypatch.setattr("downstream.segmentation.train.ENCODE_BATCH", 2)
        assert torch.allclose(encode(micro, images, (1,))[0], whole[0], atol=1e-5)


class TestFailures:
    def test_all_empty_masks(self, trainer):
        slices = squares(4, 0)
        empty = LabelledSlices(slices.images, torch.zeros_like(slices.masks))
        with pytest.raises(DataError, match="squares: the masks of all 4") as caught:
            trainer(training=[empty])
        assert caught.value.code == "DATA-09"

    @pytest.mark.parametrize("change", [{"image_size": 36}, {"num_levels": 3}])
    def test_a_recipe_the_encoder_cannot_follow(self, trainer, recipe, change):
        with pytest.raises(ConfigError) as caught:
            trainer(recipe=replace(recipe, **change))
        assert caught.value.code == "CONFIG-05"

    def test_a_loss_that_is_not_finite_leaves_the_weights(self, trainer):
        fitted = trainer(validation=[])
        before = copy.deepcopy(fitted.segmenter.state_dict())
        fitted.loss = lambda logits, _: logits.sum() * float("nan")
        fitted.step(3)
        after = fitted.segmenter.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
