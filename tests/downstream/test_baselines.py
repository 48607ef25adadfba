"""The U-Net from scratch, and the programs of others as contenders of a suite."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from core_mri.errors import ConfigError, DataError
from downstream.baselines import myopari, nnunetv2
from downstream.baselines.augment import augment, make_augmentation
from downstream.baselines.planning import plan_unet, topology
from downstream.baselines.unet import PlannedSlices, UNetTrainer, planned, random_patch
from downstream.evaluation.suite import evaluate, rehearse
from downstream.segmentation.structures import sided

SQUARE = ((1, 1), (2, 2), (2, 2), (2, 2))
TALL = ((1, 1), (1, 2), (1, 2), (2, 2), (2, 2), (2, 2), (2, 2))


def results(out):
    return json.loads((out / "results.json").read_text())


class TestPlan:
    @pytest.mark.parametrize(
        ("patch", "spacing", "strides", "kernels"),
        [
            ((50, 36), (1, 1), SQUARE, ((3, 3),) * 4),
            ((320, 320), (0.5, 0.5), ((1, 1), *((2, 2),) * 6), ((3, 3),) * 7),
            ((64, 256), (4, 1), TALL, ((1, 3),) * 2 + ((3, 3),) * 5),
            ((16, 128), (1, 1), ((1, 1), *((2, 2),) * 2, *((1, 2),) * 2), ((3, 3),) * 5),
        ],
    )  # fmt: skip
    def test_topology_is_that_of_nnunet(self, patch, spacing, strides, kernels):
        """`get_pool_and_conv_props(spacing, patch, 4, 999999)` of nnunetv2 2.8.1 gave these."""
        assert topology(patch, spacing) == (strides, kernels)

    def test_patch_and_spacing_are_medians_of_the_training_volumes(self):
        plan = plan_unet([(100, 80), (200, 160), (60, 48)], [(1, 1), (0.5, 0.5), (2, 2)])
        assert plan.spacing == (1, 1)
        assert plan.patch == (112, 80)  # of (100, 80), which four halvings do not divide
        assert plan.channels == (32, 64, 128, 256, 512)[: len(plan.strides)]

    def test_large_slices_are_cut(self):
        plan = plan_unet([(2048, 1024)], [(0.2, 0.2)])
        assert plan.patch == (768, 384)  # 724 x 362 has 512 x 512 pixels; rounded up


class TestAugment:
    def test_same_seed_same_slices_and_masks_stay_classes(self):
        images = torch.randn(3, 1, 40, 32)
        masks = (images[:, 0] > 0.5).long() * 2
        transform = make_augmentation((40, 32), mirror=True)
        first, again, other = (augment(transform, images, masks, seed) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])
        assert set(first[1].unique().tolist()) <= {0, 2}
        assert first[0].shape == images.shape
        assert first[1].shape == masks.shape

    def test_sides_are_words_of_a_name(self):
        names = ["right kidney", "kidney_left", "bright spot", "cleft", "LEFT2"]
        assert sided(names) == ["right kidney", "kidney_left", "LEFT2"]


class TestUNet:
    @pytest.fixture
    def blobs(self):
        rng = np.random.default_rng(0)
        masks = np.zeros((6, 20, 36), np.uint8)
        for mask in masks:
            row, column = rng.integers(2, 10), rng.integers(2, 24)
            mask[row : row + 8, column : column + 8] = 1
        images = np.where(masks, 0.8, 0.2) + rng.normal(0, 0.05, masks.shape)
        return images.clip(0, 1).astype(np.float32), masks

    @pytest.fixture
    def trainer(self, blobs, recipe):
        plan = plan_unet([(20, 36)], [(1.0, 1.0)])
        plan = replace(plan, channels=tuple(c // 4 for c in plan.channels))
        image, mask = blobs
        example = planned(image[None], mask, None, (1.0, 1.0), plan)

        def make(steps=40, training=example, **changes):
            settings = {
                "labels": {1: "blob"}, "recipe": replace(recipe, validate_every=10),
                "steps": steps, "seed": 0, "learning_rate": 1.0, "device": torch.device("cpu"),
                "name": "blobs",
            }  # fmt: skip
            return UNetTrainer(plan, [training], [example], **(settings | changes))

        return make

    def test_learns_and_segments_the_stored_grid(self, trainer, blobs):
        image, mask = blobs
        own = trainer()
        for index in range(40):
            own.step(index)
        found = own.finish().segment(image[None], (1.0, 1.0))
        assert own.best.validated > 0.8
        assert found.shape == mask.shape
        assert (found == mask).mean() > 0.95
        doubled = image.repeat(2, 1).repeat(2, 2)
        again = own.finish().segment(doubled[None], (0.5, 0.5))
        assert again.shape == doubled.shape
        assert (again == mask.repeat(2, 1).repeat(2, 2)).mean() > 0.95

    def test_a_resumed_training_repeats_the_steps(self, trainer):
        whole, first = trainer(steps=4), trainer(steps=4)
        losses = [whole.step(index)["loss"] for index in range(4)]
        for index in range(2):
            first.step(index)
        second = trainer(steps=4)
        second.restore(first.state())
        assert [second.step(index)["loss"] for index in (2, 3)] == losses[2:]

    def test_refuses_empty_masks(self, trainer):
        nothing = PlannedSlices(torch.zeros(2, 1, 20, 36), torch.zeros(2, 20, 36).long())
        with pytest.raises(DataError, match=r"blobs.*empty"):
            trainer(training=nothing)

    @pytest.mark.parametrize("around", [False, True])
    @pytest.mark.parametrize("patch", [(8, 8), (24, 24), (24, 8)])
    def test_patches_hold_the_slice_in_place(self, around, patch):
        image = torch.arange(1.0, 16 * 20 + 1).view(1, 16, 20)
        mask = torch.zeros(16, 20, dtype=torch.long)
        mask[3, 17] = 1
        rng = np.random.default_rng(0)
        for _ in range(20):
            found, own = random_patch(image, mask, patch, rng, around=around)
            assert found.shape[1:] == own.shape == patch
            if around:
                assert own.sum() == 1
            if own.any():
                assert found[0][own > 0] == image[0, 3, 17]


class TestSuite:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, monkeypatch):
        monkeypatch.setattr(nnunetv2, "version", lambda: "")
        monkeypatch.setattr(myopari, "version", lambda: "")

    def test_baselines_stand_beside_the_weights(self, suite_config):
        config = suite_config(k=(1,), baselines=("unet", "nnunetv2", "myopari"), tuning=(0.3, 1.0))
        out = evaluate(replace(config, baseline_steps=3))
        content = results(out)
        assert not content["failed"]
        unet = [c for c in content["cells"] if c["weights"] == "unet"]
        assert {c["twin"] for c in unet} == {False}
        assert {c["method"] for c in unet} == {"from scratch"}
        assert {c["draw"] for c in unet} == {0, 1}
        twin = [c for c in content["cells"] if c["twin"] and c["task"] == "organs"]
        assert {c["patient"] for c in unet} == {c["patient"] for c in twin}
        pairs = {(c["weights"], c["minus"]) for c in content["comparisons"]}
        assert ("micro", "unet") in pairs
        assert not any(weights.startswith(("random", "unet")) for weights, _ in pairs)
        empty = {row["weights"]: row for row in content["summary"] if not row["n"]}
        assert set(empty) == {"nnunetv2", "myopari"}
        assert empty["nnunetv2"]["mean"] is None
        assert all("not installed" in cell["why"] for cell in content["empty"])
        page = (out / "report.html").read_text()
        assert "pip install nnunetv2" in page
        notes = [json.loads(p.read_text())["notes"] for p in (out / "cells").glob("organs-*.json")]
        told = [note for own in notes for note in own if "trainings" in note]
        assert len(told) == len(notes) == 6
        assert sum("2 trainings of 3 steps" in note for note in told) == 2  # the draws of the U-Net
        assert sum("2 trainings of 2 steps" in note for note in told) == 4

    def test_the_draws_are_those_of_the_encoders(self, suite_config):
        out = evaluate(suite_config(k=(2,), baselines=("unet",)))
        used: dict[int, set[tuple[str, ...]]] = {}
        for path in (out / "cells").glob("organs-*.json"):
            cell = json.loads(path.read_text())
            used.setdefault(cell["draw"], set()).add(tuple(cell["patients"]["train"]))
        assert set(used) == {0, 1}
        assert all(len(patients) == 1 for patients in used.values())

    def test_dry_run_names_them(self, suite_config):
        lines = rehearse(suite_config(baselines=("unet",)))
        assert "baseline unet" in lines

    def test_weights_may_not_take_their_name(self, suite_config, weights):
        with pytest.raises(ConfigError, match="name of a baseline"):
            suite_config(weights={"unet": str(weights)}, baselines=("unet",))

    def test_tuning_needs_validation(self, suite_config, recipe):
        with pytest.raises(ConfigError, match="num_validation is 0"):
            suite_config(tuning=(1.0, 3.0), recipe=replace(recipe, num_validation=0))


@pytest.fixture
def fake_nnunet(tmp_path, monkeypatch):
    """Commands that check what they are given; the prediction is the training mask's threshold."""
    folder = tmp_path / "bin"
    folder.mkdir()
    plan = """
import json, os, pathlib
raw = pathlib.Path(os.environ["nnUNet_raw"]) / "Dataset501_cell"
facts = json.loads((raw / "dataset.json").read_text())
images, labels = (sorted((raw / n).iterdir()) for n in ("imagesTr", "labelsTr"))
assert facts["numTraining"] == len(images) == len(labels)
assert [p.name.replace("_0000", "") for p in images] == [p.name for p in labels]
(pathlib.Path(os.environ["nnUNet_preprocessed"]) / "Dataset501_cell").mkdir(parents=True)
"""
    train = """
import json, os, pathlib, sys
split = pathlib.Path(os.environ["nnUNet_preprocessed"]) / "Dataset501_cell/splits_final.json"
(fold,) = json.loads(split.read_text())
assert fold["train"] and fold["val"], fold
assert sys.argv[1:5] == ["501", "2d", "0", "--c"], sys.argv
"""
    predict = """
import pathlib, sys
import numpy as np
from core_mri import read_volume, write_volume
from core_mri.volume import Volume
given = sys.argv
images, out = (pathlib.Path(given[given.index(flag) + 1]) for flag in ("-i", "-o"))
out.mkdir()
for path in images.iterdir():
    found = read_volume(path)
    classes = (found.array > 0.5).astype(np.uint8)
    name = path.name.replace("_0000", "")
    write_volume(Volume(classes, found.affine, "label"), out / name)
"""
    scripts = {"plan_and_preprocess": plan, "train": train, "predict": predict}
    for name, text in scripts.items():
        path = folder / f"nnUNetv2_{name}"
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


class TestNnUNet:
    @pytest.mark.usefixtures("fake_nnunet")
    @pytest.mark.parametrize("unit", ["volumes", "slices"])
    def test_writes_its_layout_and_reads_its_masks(self, suite_config, recipe, unit):
        config = suite_config(
            k=(2,), draws=1, baselines=("nnunetv2",), recipe=replace(recipe, shots_unit=unit)
        )
        out = evaluate(config)
        content = results(out)
        assert not content["failed"]
        assert not content["empty"]
        found = [c for c in content["cells"] if c["weights"] == "nnunetv2"]
        assert any(c["value"] > 0 for c in found if c["metric"] == "dice")
        assert not list(out.rglob("imagesTr"))

    @pytest.mark.usefixtures("fake_nnunet")
    def test_several_sequences_are_channels(self, suite_config, organs, fake_nnunet):
        plan = fake_nnunet / "nnUNetv2_plan_and_preprocess"
        text = plan.read_text()
        asserted = 'assert facts["channel_names"] == {"0": "T2", "1": "T1"}, facts\n'
        halved = 'images = [p for p in images if p.name.endswith("_0000.nii.gz")]\n'
        plan.write_text(text.replace("assert facts", f"{asserted}{halved}assert facts", 1))
        predict = fake_nnunet / "nnUNetv2_predict"
        changed = predict.read_text().replace("iterdir()", 'glob("*_0000.nii.gz")')
        predict.write_text(changed)
        task = replace(organs, where="", sequences=("T2", "T1"))
        out = evaluate(suite_config(tasks=(task,), k=(1,), draws=1, baselines=("unet", "nnunetv2")))
        content = results(out)
        assert not content["failed"]
        assert {c["weights"] for c in content["cells"]} >= {"micro", "unet", "nnunetv2"}

    def test_a_failing_command_is_named_with_its_log(self, suite_config, fake_nnunet):
        (fake_nnunet / "nnUNetv2_train").write_text(
            "#!/bin/sh\necho training\necho out of luck >&2\nexit 3\n"
        )
        out = evaluate(suite_config(k=(1,), draws=1, baselines=("nnunetv2",)))
        (failed,) = results(out)["failed"]
        assert "DATA-30" in failed["error"]
        assert "nnUNetv2_train ended with 3" in failed["error"]
        assert "out of luck" in failed["error"]

    def test_the_shortest_schedule_that_is_long_enough(self):
        assert nnunetv2.schedule(150) == (1, "nnUNetTrainer_1epoch")
        assert nnunetv2.schedule(251) == (5, "nnUNetTrainer_5epochs")
        assert nnunetv2.schedule(250_000) == (1000, "nnUNetTrainer")
        assert nnunetv2.schedule(10**9) == (8000, "nnUNetTrainer_8000epochs")


class TestMyopari:
    def test_says_what_it_knows(self, monkeypatch):
        monkeypatch.setattr(myopari, "version", lambda: "0.1.6")
        assert myopari.unable(["left ventricle", "myocardium"]) == ""
        assert "not liver" in myopari.unable(["liver"])
        assert "one sequence, not 2" in myopari.unable(["left ventricle"], 2)
        monkeypatch.setattr(myopari, "version", lambda: "")
        assert "not installed" in myopari.unable(["left ventricle"])
