"""Regions without labels as structures for prompts: what they are, which slices, who is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

import core_mri
from downstream.cohort import read_image
from downstream.evaluation.cells import prepare
from downstream.evaluation.setup import cells_of, contenders
from downstream.evaluation.suite import finetune, rehearse
from downstream.prompting import regions
from downstream.prompting.clicks import random_target
from downstream.prompting.regions import drawn_slices, even_regions, region_slices


@pytest.fixture
def pairs(registry, prompting):
    return prepare(registry, prompting).data


def discs() -> tuple[np.ndarray, list[np.ndarray]]:
    """Two bright discs in air, the second cut by the edge."""
    y, x = np.mgrid[:64, :64]
    masks = [(y - a) ** 2 + (x - b) ** 2 < 100 for a, b in ((20, 20), (45, 61))]
    return (0.8 * masks[0] + 0.5 * masks[1]).astype(np.float32), masks


class TestRegions:
    @pytest.mark.parametrize("seed", range(10))
    def test_a_disc_is_one_and_air_and_what_the_edge_cuts_are_none(self, seed: int) -> None:
        """To the blur of the smoothing, whose slopes may be regions of their own."""
        image, (whole, cut) = discs()
        found = even_regions(image, np.random.default_rng(seed))
        number = found[20, 20]
        assert number > 0
        assert (found[ndimage.binary_erosion(whole, iterations=5)] == number).all()
        assert not (found == number)[~ndimage.binary_dilation(whole, iterations=4)].any()
        assert not found[ndimage.binary_erosion(cut, iterations=5, border_value=1)].any()
        assert found[0, 0] == found[60, 5] == 0

    @pytest.mark.parametrize("seed", range(10))
    def test_each_is_connected_bright_and_of_fair_size(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        image = ndimage.gaussian_filter(rng.random((48, 40)), 3)
        image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
        found = even_regions(image, rng)
        numbers = np.unique(found[found > 0])
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        for number in numbers:
            mask = found == number
            assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
            assert regions.FEWEST[0] <= mask.sum() <= regions.LARGEST * mask.size
            assert image[mask].mean() >= regions.DARKEST * (1 - 1e-6)

    def test_nothing_in_air(self) -> None:
        assert not even_regions(np.zeros((32, 32), np.float32), np.random.default_rng(0)).any()


class TestSlices:
    def test_each_once_whatever_the_volume(self, pairs) -> None:
        places = [
            (own.row.volume_id, i) for own in drawn_slices(pairs.images, 7, 0) for i in own[1]
        ]
        assert len(places) == len(set(places)) == 7
        everything = drawn_slices(pairs.images, 10**6, 0)
        assert [own.row for own in everything] == list(pairs.images)
        assert all(own.indices == list(range(own.row.num_slices)) for own in everything)

    def test_same_seed_same_slices(self, pairs) -> None:
        assert drawn_slices(pairs.images, 5, 3) == drawn_slices(pairs.images, 5, 3)
        assert drawn_slices(pairs.images, 5, 3) != drawn_slices(pairs.images, 5, 4)
        assert drawn_slices(pairs.images, 0, 3) == []

    def test_classes_follow_those_with_labels(self, registry, pairs, recipe) -> None:
        drawn = drawn_slices(pairs.images, 6, 0)
        found = region_slices(registry, drawn, recipe, 0, after=3)
        again = region_slices(registry, drawn, recipe, 0, after=3)
        assert sum(len(example.masks) for example in found) == 6
        for own, example, other in zip(drawn, found, again, strict=True):
            assert example.images.shape == (len(own.indices), 1, 32, 32)
            assert torch.equal(example.masks, other.masks)
            image = torch.from_numpy(read_image(registry, own.row)[own.indices])
            assert torch.equal(example.images[:, 0], image)  # stored at this size
        numbers = torch.cat([example.masks.unique() for example in found]).unique()
        assert numbers[:2].tolist() == [0, 4]


class TestCells:
    def test_training_prompts_them_and_names_their_patients(
        self, finetune_config, prompting, recipe, registry, monkeypatch
    ) -> None:
        """One labelled patient; the others of the training split have regions only."""
        prompted = set()

        def spy(classes, rng):
            prompted.update(np.unique(classes))
            return random_target(classes, rng)

        monkeypatch.setattr("downstream.prompting.train.random_target", spy)
        wanted = replace(recipe, prompt_rounds=1, regions=40, batch_size=16)
        config = finetune_config(task=prompting, recipe=wanted, k=1, steps=2)
        assert any("training steps" in line for line in rehearse(config))
        out = finetune(config)
        assert max(prompted) > 3  # beyond spleen, right kidney, aorta
        results = json.loads((out / "results.json").read_text())
        card = core_mri.load_model(out, device="cpu").card
        rows = prepare(registry, prompting).data.images
        trained = {own.row.subject_id for own in drawn_slices(rows, 40, _seed(0))}
        assert len(trained) > 5
        assert trained <= set(card["subjects"])
        assert "regions of even brightness in 40 slices" in (out / "report.html").read_text()
        assert {cell["structure"] for cell in results["cells"]} == {"liver"}

    def test_the_key_knows_the_images_and_only_prompts_want_them(
        self, suite_config, prompting, organs, recipe, registry
    ) -> None:
        config = suite_config(tasks=(prompting, organs), recipe=replace(recipe, regions=9))
        contender = next(contenders(config))
        data, other = (prepare(registry, task) for task in (prompting, organs))
        (cell, *_), (plain, *_) = (cells_of(config, contender, own) for own in (data, other))
        assert cell.images
        assert not plain.images
        assert plain.recipe.regions == 0
        fewer = replace(data, data=replace(data.data, images=data.data.images[1:]))
        assert cells_of(config, contender, fewer)[0].key != cell.key
        without = replace(config, recipe=recipe)
        assert cells_of(without, contender, fewer)[0] == cells_of(without, contender, data)[0]


def _seed(seed: int) -> int:
    return int(np.random.SeedSequence((seed, 0)).generate_state(1)[0])
