"""Simulated prompts, the losses of a mask decoder, its training, and the task kind `prompting`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from core_mri.models.promptable import Masks, PromptableSegmenter
from core_mri.prompting import PromptedVolume
from core_mri.slice_grid import image_to_square
from core_mri.volume import Volume
from downstream.config import training_task
from downstream.evaluation.suite import finetune, rehearse
from downstream.prompting import answers, clicks
from downstream.prompting.loss import mask_loss
from downstream.prompting.train import PromptTrainer
from downstream.segmentation.data import read_mask
from downstream.segmentation.examples import LabelledSlices


def blobs(seed: int, shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    """A random mask of a few connected parts."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0.1


class TestClicks:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_click_lies_in_the_error_and_says_which(self, seed: int) -> None:
        target, estimate = blobs(seed), blobs(seed + 100)
        rng = np.random.default_rng(seed)
        for x, y, label in (
            clicks.random_click(target, estimate, rng),
            clicks.central_click(target, estimate),
        ):
            assert target[y, x] != estimate[y, x]
            assert label == target[y, x]

    def test_without_an_error_a_click_lies_inside(self) -> None:
        target = blobs(0)
        x, y, label = clicks.random_click(target, target, np.random.default_rng(0))
        assert (target[y, x], label) == (True, 1)
        x, y, label = clicks.central_click(target, target)
        assert (target[y, x], label) == (True, 1)

    def test_the_first_central_click_is_the_deepest_pixel(self) -> None:
        target = np.zeros((20, 20), bool)
        target[3:8, 2:9] = True  # 5 x 7: the deepest pixels are those of its middle row
        target[10:12, 10:20] = True
        x, y, label = clicks.central_click(target, np.zeros_like(target))
        assert (y, label) == (5, 1)
        assert 4 <= x <= 6

    def test_the_edge_of_the_image_is_a_border(self) -> None:
        x, y, _ = clicks.central_click(np.ones((9, 9), bool), np.zeros((9, 9), bool))
        assert (x, y) == (4, 4)

    def test_an_added_region_gets_an_outside_click(self) -> None:
        target, estimate = np.zeros((2, 20, 20), bool)
        target[2:5, 2:5] = estimate[2:5, 2:5] = estimate[10:19, 10:19] = True
        assert clicks.central_click(target, estimate) == (14, 14, 0)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_box_holds_the_structure_before_its_noise(self, seed: int) -> None:
        mask = blobs(seed)
        x0, y0, x1, y1 = clicks.box_of(mask).astype(int)
        inside = mask[y0 : y1 + 1, x0 : x1 + 1]
        assert inside.sum() == mask.sum()
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))

    def test_noise_of_a_box(self) -> None:
        rng = np.random.default_rng(0)
        box = np.array([300, 200, 399, 239], np.float32)  # 100 x 40 pixels
        drawn = np.stack([clicks.jittered(box, (600, 600), rng) for _ in range(4000)])
        assert np.allclose(drawn.mean(0), box, atol=0.5)
        assert np.allclose(drawn.std(0), [9.6, 4, 9.6, 4], rtol=0.08)  # 20 px bound the wide side
        assert np.abs(drawn - box).max() <= clicks.MAX_JITTER
        box = clicks.box_of(blobs(1))
        small = np.stack([clicks.jittered(box, (40, 30), rng) for _ in range(50)])
        assert (small[:, :2] <= small[:, 2:]).all()
        assert small.min() >= 0
        assert (small.max(0) <= [29, 39, 29, 39]).all()

    def test_a_careless_box_is_the_same_each_time(self) -> None:
        mask = np.zeros((40, 30), bool)
        mask[10:22, 8:19] = True
        box = clicks.careless_box(mask)
        assert np.array_equal(box, clicks.careless_box(mask))
        assert not np.array_equal(box, clicks.box_of(mask))

    def test_same_seed_same_prompts(self) -> None:
        classes = blobs(3).astype(int) + 2 * blobs(4)

        def drawn(seed: int) -> list[object]:
            rng = np.random.default_rng(seed)
            target = clicks.random_target(classes, rng)
            box = clicks.jittered(clicks.box_of(target), target.shape, rng)
            click = clicks.random_click(target, np.zeros_like(target), rng)
            return [target.tolist(), box.tolist(), click]

        assert drawn(7) == drawn(7)
        assert any(drawn(7) != drawn(seed) for seed in range(3))

    def test_a_target_is_a_structure_or_a_part_of_one(self) -> None:
        from scipy import ndimage

        classes = np.where(blobs(5), 1, 2 * blobs(6))
        counts = {"whole": 0, "part": 0}
        for seed in range(40):
            target = clicks.random_target(classes, np.random.default_rng(seed))
            (value,) = np.unique(classes[target])
            assert value > 0
            whole = bool(np.array_equal(target, classes == value))
            counts["whole" if whole else "part"] += 1
            assert whole or ndimage.label(target)[1] == 1
        assert min(counts.values()) > 5


class TestPlaces:
    @pytest.mark.parametrize("shape", [(20, 32), (32, 20), (17, 17)])
    def test_prompts_land_where_predictor_puts_them(self, shape, monkeypatch) -> None:
        """The same box and point through `PromptedVolume` and through the scores."""
        model = core_mri.create_model("sam_vit_micro").eval()
        seen: list[tuple[object, object]] = []
        real = model.decode

        def decode(embedding, points=None, boxes=None, mask=None, **options):
            seen.append((points, boxes))
            return real(embedding, points, boxes, mask, **options)

        monkeypatch.setattr(model, "decode", decode)
        mask = np.zeros((1, *shape), bool)
        mask[0, 4:11, 6:9] = True
        embedding = model.embed_image(torch.rand(1, 1, 128, 128)).detach()
        answers.answer(model, embedding, mask, 128)
        (_, box), _, (points, _) = seen[:3]
        seen.clear()
        array = np.random.default_rng(0).random((*shape[::-1], 3)).astype(np.float32)
        prompted = PromptedVolume(model, Volume(array, np.diag([-1.0, -1, 5, 1])), 128)
        assert prompted.prepared.array.shape == (3, *shape)
        x0, y0, x1, y1 = clicks.box_of(mask[0]).astype(int).tolist()
        x, y, _ = clicks.central_click(mask[0], np.zeros(shape, bool))
        with torch.no_grad():
            prompted.segment([(x0, y0, 1, x1 + 1, y1 + 1, 2)], [])
            assert torch.allclose(seen[0][1], box, atol=1e-4)
            seen.clear()
            prompted.segment([], [(x, y, 1, 1)])
            assert torch.allclose(seen[0][0][0], points[0], atol=1e-4)


class TestLoss:
    def masks(self, logits: torch.Tensor, iou: float = 1.0) -> Masks:
        return Masks(logits, torch.full(logits.shape[:2], iou))

    def test_the_formula(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(2, 1, 6, 5, dtype=torch.float64)
        targets = torch.rand(2, 6, 5) > 0.5
        t, p = targets[:, None].double(), logits.sigmoid()
        right = torch.where(targets[:, None], p, 1 - p)
        focal = (-((1 - right) ** 2) * right.log()).mean((1, 2, 3))
        overlap = 1 - 2 * (p * t).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)))
        hit = ((logits > 0) & targets[:, None]).sum((1, 2, 3))
        iou = hit / ((logits > 0) | targets[:, None]).sum((1, 2, 3))
        expected = 20 * focal + overlap + (0.3 - iou) ** 2
        assert torch.allclose(mask_loss(self.masks(logits, 0.3), targets), expected, atol=1e-5)

    def test_a_perfect_answer_costs_nothing(self) -> None:
        targets = torch.from_numpy(np.stack([blobs(0), blobs(1)]))
        logits = torch.where(targets, 30.0, -30.0)[:, None]
        assert mask_loss(self.masks(logits), targets).max() < 1e-4

    def test_only_the_best_of_three_is_pulled(self) -> None:
        targets = torch.from_numpy(blobs(0))[None]
        good = torch.where(targets, 1.0, -1.0)
        logits = torch.stack([-good, good, 0 * good], 1).requires_grad_()
        mask_loss(self.masks(logits), targets).sum().backward()
        assert logits.grad is not None
        assert logits.grad[0, 1].any()
        assert not logits.grad[0, [0, 2]].any()


def shapes(num_slices: int, seed: int) -> LabelledSlices:
    """A bright and a dark ellipse on noise, labelled 1 and 2."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    images = 0.4 + 0.1 * rng.random((num_slices, 32, 32))
    masks = np.zeros((num_slices, 32, 32), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for value, level, left in ((1, 0.8, 8), (2, 0.1, 23)):
            a, b = rng.uniform(3, 6, 2)
            cy, cx = rng.uniform(9, 22), left + rng.uniform(-2, 2)
            inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
            image[inside], mask[inside] = level, value
    return LabelledSlices(torch.from_numpy(images).float()[:, None], torch.from_numpy(masks))


@pytest.fixture
def trainer(micro, recipe):
    """Build a PromptTrainer on ellipses; keyword arguments change it."""

    def make(**changes) -> PromptTrainer:
        values = {
            "encoder": micro,
            "training": [shapes(8, 0)],
            "validation": [shapes(6, 1)],
            "adaptation": "frozen",
            "recipe": replace(recipe, head_width=32, learning_rate=2e-3, prompt_rounds=2),
            "steps": 4,
            "seed": 0,
            "name": "ellipses",
        } | changes
        given = [values.pop(name) for name in ("encoder", "training", "validation")]
        return PromptTrainer(*given, **values)

    return make


def run(trainer: PromptTrainer, first: int = 0) -> list[float]:
    return [trainer.step(index)["loss"] for index in range(first, trainer.steps)]


class TestTraining:
    def test_the_loss_falls_and_boxes_are_answered(self, trainer, recipe) -> None:
        changed = replace(
            recipe,
            head_width=32,
            learning_rate=4e-3,
            prompt_rounds=2,
            batch_size=8,
            validate_every=100,
        )
        fitted = trainer(steps=100, recipe=changed)
        before = fitted.validate()
        losses = run(fitted)
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
        assert fitted.best.validated > before + 0.15

    def test_only_the_decoder_moves(self, trainer) -> None:
        fitted = trainer()
        start = {name: t.clone() for name, t in fitted.model.state_dict().items()}
        run(fitted)
        end = fitted.model.state_dict()
        moved = {name for name, t in end.items() if not torch.equal(t, start[name])}
        assert not any(name.startswith("image_encoder.encoder.") for name in moved)
        for part in ("image_encoder.neck.", "prompt_encoder.", "mask_decoder."):
            assert any(name.startswith(part) for name in moved)
        # Every part of the conversation is trained: single mask, three masks, mask prompt, IoU.
        for name in ("mask_tokens", "iou_prediction_head", "output_hypernetworks_mlps.3"):
            assert any(name in other for other in moved)
        assert any("mask_downscaling" in name for name in moved)

    def test_full_moves_the_encoder_too(self, trainer, micro) -> None:
        before = {name: t.clone() for name, t in micro.state_dict().items()}
        fitted = trainer(adaptation="full", steps=2)
        run(fitted)
        end = fitted.model.image_encoder.encoder.state_dict()
        assert any(not torch.equal(t, end[name]) for name, t in before.items())
        assert all(torch.equal(t, before[name]) for name, t in micro.state_dict().items())

    @pytest.mark.parametrize("adaptation", ["adapters", "lora"])
    def test_small_parts_of_the_encoder_move_and_are_released(
        self, trainer, adaptation: str, tmp_path: Path
    ) -> None:
        fitted = trainer(adaptation=adaptation, steps=2)
        moving, total = fitted.num_moving
        assert 0 < moving < total
        run(fitted)
        model = fitted.finish()
        image = torch.rand(1, 1, 32, 32)
        loaded = core_mri.load_model(core_mri.save_model(model, tmp_path), device="cpu")
        assert torch.equal(model.embed_image(image), loaded.embed_image(image))
        assert not torch.equal(model.embed_image(image), trainer().finish().embed_image(image))

    def test_stops_when_the_validation_patients_gain_nothing(self, trainer, recipe) -> None:
        patient = replace(recipe, head_width=32, validate_every=1, patience=2)
        fitted = trainer(recipe=patient)
        assert not fitted.best.enough
        fitted.best.score = (2.0,)  # no later look is better
        fitted.best.step = 0
        fitted.step(0)
        assert not fitted.best.enough
        fitted.step(1)
        assert fitted.best.enough

    @pytest.mark.parametrize("adaptation", ["frozen", "head", "lora"])
    def test_a_resumed_run_repeats_the_other(self, trainer, adaptation: str) -> None:
        whole = trainer(adaptation=adaptation)
        losses = run(whole)
        half = trainer(adaptation=adaptation)
        for index in range(2):
            half.step(index)
        resumed = trainer(adaptation=adaptation)
        resumed.restore(half.state())
        assert run(resumed, 2) == losses[2:]
        ends = [t.finish().state_dict() for t in (whole, resumed)]
        assert all(torch.equal(t, ends[1][name]) for name, t in ends[0].items())

    def test_nothing_to_learn_from(self, trainer) -> None:
        empty = LabelledSlices(torch.rand(2, 1, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long))
        with pytest.raises(DataError, match=r"DATA-09.*are empty"):
            trainer(training=[empty])

    def test_a_width_that_sams_decoder_cannot_have(self, trainer, recipe) -> None:
        with pytest.raises(ConfigError, match="multiple of 16"):
            trainer(recipe=replace(recipe, head_width=24))


class TestTask:
    def test_run_folder(self, finetune_config, prompting, recipe, registry, monkeypatch) -> None:
        trained_on = set()
        real = clicks.random_target

        def spy(classes, rng):
            trained_on.update(np.unique(classes).tolist())
            return real(classes, rng)

        monkeypatch.setattr("downstream.prompting.train.random_target", spy)
        recipe = replace(recipe, prompt_rounds=2)
        config = finetune_config(task=prompting, recipe=recipe, steps=2)
        assert any("training steps" in line for line in rehearse(config))
        out = finetune(config)
        assert trained_on == {0, 1, 2, 3}  # spleen, kidney, aorta
        results = json.loads((out / "results.json").read_text())
        cells = results["cells"]
        assert {cell["method"] for cell in cells} == {
            *("box", "careless box", "1 click", "3 clicks", "5 clicks")
        }
        assert {cell["structure"] for cell in cells} == {"liver"}
        assert {cell["metric"] for cell in cells} == {"dice_2d"}
        assert {cell["twin"] for cell in cells} == {True, False}
        assert "liver, box" in results["verdict"]
        model = core_mri.load_model(out, device="cpu")
        assert isinstance(model, PromptableSegmenter)
        assert "trained on spleen, right kidney, aorta" in model.card["summary"]
        assert {row["method"] for row in model.card["results"]} >= {"box", "5 clicks"}
        page = (out / "report.html").read_text()
        assert "number of clicks" in page
        # The same numbers from the saved model, by hand.
        from downstream.evaluation.cells import prepare

        pairs = prepare(registry, prompting).data.test
        found = answers.score_prompts(model, registry, pairs, prompting)
        by_patient: dict[str, list[float]] = {}
        for prediction, scores in found:
            patient = prediction.pair.image.subject_id
            by_patient.setdefault(patient, []).extend(scores["box", "liver"])
            reference = read_mask(registry, prediction.pair, prompting) == 1
            shown = [
                dice(a, b)
                for a, b in zip(reference, prediction.estimate == 1, strict=True)
                if a.any()
            ]
            assert shown == pytest.approx(scores["box", "liver"])
            stored = core_mri.read_volume(
                out / "predictions" / f"{prediction.pair.image.volume_id}.nii.gz"
            )
            assert set(np.unique(stored.array)) <= {0, prompting.labels["liver"]}
        assert {patient: float(np.mean(v)) for patient, v in by_patient.items()} == pytest.approx(
            {c["patient"]: c["value"] for c in cells if c["method"] == "box" and not c["twin"]}
        )

    def test_a_slice_alone_is_answered_as_in_its_volume(
        self, finetune_config, prompting, recipe, registry
    ) -> None:
        """The saved model on one stored slice gives the mask that was scored."""
        from downstream.evaluation.cells import prepare

        config = finetune_config(
            task=prompting, steps=1, recipe=replace(recipe, prompt_rounds=1, num_validation=0)
        )
        model = core_mri.load_model(finetune(config), device="cpu")
        pair = prepare(registry, prompting).data.test[0]
        ((prediction, _),) = answers.score_prompts(model, registry, [pair], prompting)
        index = int(np.flatnonzero((prediction.reference == 1).any((1, 2)))[0])
        targets = prediction.reference[index : index + 1] == 1
        square = image_to_square(prediction.image[index : index + 1], 32)
        with torch.no_grad():
            found = answers.answer(model, model.embed_image(square), targets, 32)
        assert np.array_equal(found["box"][0], prediction.estimate[index] == 1)

    def test_another_anatomy_to_train_on(self, registry, prompting) -> None:
        from downstream.evaluation.cells import prepare

        task = replace(prompting, where="sequence = 'T2'", train_where="sequence = 'T1'")
        pairs = prepare(registry, task).data
        assert {pair.image.sequence for pair in pairs.train + pairs.val} == {"T1"}
        assert {pair.image.sequence for pair in pairs.test} == {"T2"}
        trained = {pair.image.subject_id for pair in pairs.train + pairs.val}
        assert not trained & {pair.image.subject_id for pair in pairs.test}

    def test_what_is_trained_on(self, prompting, organs) -> None:
        assert list(training_task(prompting).labels) == ["spleen", "right kidney", "aorta"]
        assert training_task(organs) == organs
        with pytest.raises(ConfigError, match="only a prompting task has train_labels"):
            replace(organs, train_labels={"liver": 1})
        with pytest.raises(ConfigError, match="distinct values"):
            replace(prompting, train_labels={"liver": 1, "spleen": 1})

    def test_no_test_volume_shows_the_structure(
        self, finetune_config, prompting, monkeypatch
    ) -> None:
        task = replace(prompting, labels={"tail": 99})
        with pytest.raises(DataError, match=r"DATA-09.*test split show no structure"):
            rehearse(finetune_config(task=task))
        # Registries of an earlier version do not know the values of their label volumes.
        monkeypatch.setattr("downstream.segmentation.data.stored_values", lambda _label: None)
        with pytest.raises(DataError, match=r"DATA-35.*none of the .* test volumes shows"):
            finetune(finetune_config(task=task, steps=1))
