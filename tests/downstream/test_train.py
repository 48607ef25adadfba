from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, DataError
from core_mri.slice_inference import neighbour_windows
from core_mri.weights.fingerprint import weights_fingerprint
from downstream.segmentation.examples import LabelledSlices
from downstream.segmentation.features import FrozenFeatures, encode
from downstream.segmentation.train import Trainer

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


def windowed(slices: LabelledSlices) -> LabelledSlices:
    """Each slice with the one before and the one after it."""
    looks_at = neighbour_windows(range(len(slices.masks)), 1, len(slices.masks))
    return replace(slices, looks_at=looks_at)


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
        if values["recipe"].neighbours:
            for name in ("training", "validation"):
                values[name] = [windowed(slices) for slices in values[name]]
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
        assert fitted.best.validated > 0.8

    def test_the_best_validated_step_is_kept(self, trainer, recipe):
        fitted = trainer(steps=12, recipe=replace(recipe, validate_every=3))
        run(fitted)
        scores = {p.step: p.validation for p in fitted.best.curve if p.validation is not None}
        assert fitted.best.validated == max(scores.values())
        assert scores[fitted.best.step] == fitted.best.validated
        fitted.finish()
        assert fitted._validate(99) == pytest.approx(fitted.best.validated)

    def test_without_validation_the_last_step_is_kept(self, trainer):
        fitted = trainer(validation=[])
        run(fitted)
        last = copy.deepcopy(fitted.segmenter.state_dict())
        kept = fitted.finish().state_dict()
        assert fitted.best.step == fitted.steps
        assert all(torch.equal(last[name], kept[name]) for name in last)

    @pytest.mark.parametrize(
        "changes",
        [
            {"decoder": "linear"},
            {"decoder": "pyramid"},
            {"decoder": "sam", "learning_rate": 1e-3},
            {"loss": "dice_focal"},
            {"precision": "bfloat16"},
            {"ema": 0.9},
            {"neighbours": 1},
            {"neighbours": 1, "fusion": "mean"},
            {"mirror": True},
        ],
    )
    def test_every_way_to_train_learns(self, trainer, recipe, changes):
        changed = replace(recipe, **({"learning_rate": 1e-2} | changes))
        fitted = trainer(steps=50, recipe=replace(changed, validate_every=10))
        losses = [numbers["loss"] for numbers in run(fitted)]
        assert losses[-1] < 0.8 * losses[0]
        assert fitted.best.validated > 0.3

    @pytest.mark.parametrize("adaptation", ["head", "adapters", "lora", "full"])
    def test_every_adaptation_learns(self, trainer, recipe, adaptation):
        fitted = trainer(
            steps=25, adaptation=adaptation, recipe=replace(recipe, learning_rate=1e-2)
        )
        losses = [numbers["loss"] for numbers in run(fitted)]
        assert losses[-1] < 0.8 * losses[0]


class TestWhatMoves:
    @pytest.mark.parametrize(
        ("adaptation", "same"),
        [("frozen", True), ("head", True), ("adapters", False), ("lora", False), ("full", False)],
    )
    def test_frozen_encoders_stay(self, trainer, micro, adaptation, same):
        before = weights_fingerprint(micro)
        fitted = trainer(adaptation=adaptation, steps=3)
        run(fitted)
        assert (weights_fingerprint(fitted.finish().encoder) == before) is same
        assert weights_fingerprint(micro) == before

    def test_their_number_is_known(self, trainer, micro):
        head, total = trainer().num_moving
        assert total - head == sum(p.numel() for p in micro.parameters())
        assert trainer(adaptation="lora").num_moving[0] == head + 2 * 2 * 2 * 4 * micro.embed_dim

    def test_a_twin_gets_the_same_head_and_the_same_batches(self, trainer, micro):
        from downstream.adapt import random_twin

        ours, theirs = trainer(), trainer(encoder=random_twin(micro, 0))
        heads = [t.segmenter.head.state_dict() for t in (ours, theirs)]
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
        assert torch.equal(ours._batch(2)[1], theirs._batch(2)[1])


class TestRelease:
    @pytest.mark.parametrize("adaptation", ["adapters", "lora", "full"])
    @torch.no_grad()
    def test_a_fitted_model_is_saved_and_gives_the_same_answers(
        self, trainer, adaptation, tmp_path
    ):
        fitted = trainer(adaptation=adaptation)
        with torch.enable_grad():
            run(fitted)
        images = torch.rand(2, 1, 32, 32)
        model = fitted.segmenter.eval()
        if fitted.best.step == fitted.steps:
            before = model(images)
            assert torch.allclose(fitted.finish()(images), before, atol=1e-6)
        model = fitted.finish()
        core_mri.save_model(model, tmp_path)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        assert torch.equal(loaded(images), model(images))


class TestNeighbours:
    def test_a_slice_is_decoded_with_the_slices_around_it(self, trainer, recipe):
        fitted = trainer(recipe=replace(recipe, neighbours=1, augmented_copies=2))
        volume = squares(6, 0).images[:, 0]
        looked_at = fitted.training.batch(torch.arange(3 * 6))
        assert looked_at.shape == (18, 3, 32, 32)
        assert torch.equal(looked_at[2], volume[1:4])
        assert torch.equal(looked_at[0], volume[[0, 0, 1]])

    def test_neighbours_and_mask_of_a_copy_move_together(self, trainer, recipe):
        slices = squares(6, 0)
        same = LabelledSlices(
            slices.images[:1].expand(6, -1, -1, -1), slices.masks[:1].expand(6, -1, -1)
        )
        windows = trainer(
            training=[windowed(same)], recipe=replace(recipe, neighbours=1, augmented_copies=1)
        )
        copies = windows.training.batch(torch.arange(6, 12))
        assert torch.equal(copies[:, 0], copies[:, 1])
        bright = copies[:, 1] > 0.5
        assert (bright == (windows.masks[6:] > 0)).float().mean() > 0.95

    def test_cached_tokens_are_those_of_the_planes(self, trainer, recipe):
        fitted = trainer(recipe=replace(recipe, neighbours=1, num_levels=1))
        levels, images, _ = fitted._batch(0)
        assert levels[0].shape[:2] == images.shape[:2]
        again = encode(fitted.segmenter.encoder, images.flatten(0, 1)[:, None], (1,))[0]
        assert torch.allclose(levels[0].flatten(0, 1), again, atol=1e-5)


class TestStopping:
    def test_it_stops_when_validation_gains_nothing(self, trainer, recipe):
        fitted = trainer(steps=40, recipe=replace(recipe, patience=2, learning_rate=1e-9))
        done = next(i for i in range(40) if fitted.step(i) and fitted.best.enough)
        assert done < 39
        assert fitted.best.curve[-1].step - fitted.best.step == 2 * recipe.validate_every

    def test_without_patience_it_never_does(self, trainer, recipe):
        fitted = trainer(steps=10, recipe=replace(recipe, learning_rate=1e-9))
        run(fitted)
        assert not fitted.best.enough


class TestDeterminism:
    @pytest.mark.parametrize("adaptation", ["frozen", "head", "adapters", "lora", "full"])
    def test_same_seed_same_losses(self, trainer, adaptation):
        assert run(trainer(adaptation=adaptation)) == run(trainer(adaptation=adaptation))

    @pytest.mark.parametrize(
        ("adaptation", "ema"),
        [("frozen", 0.0), ("frozen", 0.5), ("adapters", 0.0), ("lora", 0.5), ("full", 0.0)],
    )
    def test_a_resumed_run_repeats_the_uninterrupted_one(self, trainer, recipe, adaptation, ema):
        recipe = replace(recipe, ema=ema)
        whole = trainer(adaptation=adaptation, recipe=recipe)
        run(whole)
        first = trainer(adaptation=adaptation, recipe=recipe)
        run(first, last=3)
        second = trainer(adaptation=adaptation, recipe=recipe)
        second.restore(copy.deepcopy(first.state()))
        run(second, first=3)
        assert second.best.curve == whole.best.curve
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
        monkeypatch.setattr("downstream.segmentation.features.ENCODE_BATCH", 2)
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

    @pytest.mark.parametrize("label", ["left kidney", "Kidney_Right"])
    def test_mirrored_slices_with_sides(self, trainer, recipe, label):
        with pytest.raises(ConfigError, match=label) as caught:
            trainer(labels={1: label}, recipe=replace(recipe, mirror=True))
        assert caught.value.code == "CONFIG-05"

    def test_a_loss_that_is_not_finite_leaves_the_weights(self, trainer):
        fitted = trainer(validation=[])
        before = copy.deepcopy(fitted.segmenter.state_dict())
        fitted.loss = lambda logits, _: logits.sum() * float("nan")
        fitted.step(3)
        after = fitted.segmenter.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
