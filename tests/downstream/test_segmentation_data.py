from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError, GeometryError
from downstream.cohort import load_cohort
from downstream.segmentation.data import Pair, count_examples, draw_shots, pair_labels, read_mask


def pairs_of(num_patients: int, per_patient: int = 2) -> list[Pair]:
    return [
        Pair(SimpleNamespace(subject_id=f"p{p}", volume_id=f"p{p}v{v}"), None)
        for p in range(num_patients)
        for v in range(per_patient)
    ]


def draw(pairs, k, unit="volumes", seed=0, number=0, foreground=lambda _: [2, 3, 7], **options):
    return draw_shots(pairs, k, unit, seed=seed, draw=number, foreground=foreground, **options)


@pytest.mark.parametrize("unit", ["volumes", "slices"])
class TestDrawShots:
    def test_same_seed_same_draw_whatever_the_order(self, unit):
        pairs = pairs_of(6)
        assert draw(pairs, 5, unit) == draw(pairs[::-1], 5, unit)

    def test_smaller_draws_are_contained_in_larger_ones(self, unit):
        pairs = pairs_of(4)
        largest = draw(pairs, 8, unit)
        for k in range(1, 8):
            assert draw(pairs, k, unit) == largest[:k]

    def test_as_many_patients_as_possible(self, unit):
        patients = [shot.pair.image.subject_id for shot in draw(pairs_of(5), 7, unit)]
        assert len(set(patients[:5])) == 5

    def test_no_example_twice(self, unit):
        shots = draw(pairs_of(4), 8, unit)
        assert len({(s.pair.image.volume_id, s.slices) for s in shots}) == 8

    def test_draws_and_seeds_differ(self, unit):
        pairs = pairs_of(8)
        chosen = {
            tuple(s.pair.image.volume_id for s in draw(pairs, 3, unit, seed=s, number=n))
            for s in range(3)
            for n in range(3)
        }
        assert len(chosen) > 5

    def test_too_few_is_said_with_the_number(self, unit):
        pairs = pairs_of(1, per_patient=1)
        with pytest.raises(DataError, match="99 labelled") as caught:
            draw(pairs, 99, unit)
        assert caught.value.code == "DATA-09"
        assert 1 <= len(draw(pairs, 99, unit, fewer=True)) <= 3


class TestPatients:
    def test_all_volumes_of_each(self):
        shots = draw(pairs_of(6, 3), 2, "patients")
        patients = {shot.pair.image.subject_id for shot in shots}
        assert (len(shots), len(patients), count_examples(shots, "patients")) == (6, 2, 2)
        assert all(shot.slices is None for shot in shots)

    def test_the_same_patients_as_a_draw_of_volumes(self):
        pairs = pairs_of(6, 3)
        whole = {shot.pair.image.subject_id for shot in draw(pairs, 4, "patients")}
        assert whole == {shot.pair.image.subject_id for shot in draw(pairs[::-1], 4)}

    def test_too_few_patients(self):
        with pytest.raises(DataError, match="99 labelled patients"):
            draw(pairs_of(2), 99, "patients")
        assert count_examples(draw(pairs_of(2), 99, "patients", fewer=True), "patients") == 2


class TestSlices:
    def test_only_slices_that_show_a_structure(self):
        shots = draw(pairs_of(3, 1), 6, "slices", foreground=lambda _: [4, 5])
        assert {shot.slices for shot in shots} == {(4,), (5,)}

    def test_volumes_are_not_read_for_whole_volume_draws(self):
        def forbidden(pair):
            raise AssertionError("read")

        assert len(draw(pairs_of(3), 2, "volumes", foreground=forbidden)) == 2


class TestPairLabels:
    def test_every_image_has_its_patients_label_on_its_grid(self, registry, organs):
        pairs = pair_labels(registry, load_cohort(registry, organs), organs)
        for pair in (*pairs.train, *pairs.val, *pairs.test):
            assert pair.label.subject_id == pair.image.subject_id
            assert registry.read(pair.label).same_grid(registry.read(pair.image))
        assert len(pairs.test) == len(load_cohort(registry, organs).test)

    def test_labels_on_another_grid(self, make_registry, organs):
        moved = make_registry(3, shift_labels_mm=5)
        with pytest.raises(GeometryError, match="label volumes of 3 patients") as caught:
            pair_labels(moved, load_cohort(moved, organs), organs)
        assert caught.value.code == "GEOMETRY-03"

    def test_no_labels_at_all(self, registry, organs):
        task = replace(organs, label_where="source = 'elsewhere'")
        with pytest.raises(DataError, match="'train': 0") as caught:
            pair_labels(registry, load_cohort(registry, task), task)
        assert caught.value.code == "DATA-09"

    def test_several_labels_need_a_choice(self, registry, organs):
        cohort = load_cohort(registry, organs)

        class Doubled:
            """Every label volume twice, with other voxels."""

            volumes = registry.volumes

            def labels_of(self, image):
                (label,) = registry.labels_of(image)
                return [label, replace(label, pixel_hash="other")]

        with pytest.raises(ConfigError, match="2 different label volumes") as caught:
            pair_labels(Doubled(), cohort, organs)
        assert caught.value.code == "CONFIG-05"

    def test_one_patient_is_too_few(self, registry, organs):
        patient = load_cohort(registry, organs).train[0].subject_id
        task = replace(organs, where=f"subject_id = '{patient}'")
        with pytest.raises(DataError, match="from 1 patients") as caught:
            pair_labels(registry, load_cohort(registry, task), task)
        assert caught.value.code == "DATA-09"


class TestReadMask:
    @pytest.fixture
    def pair(self, registry, organs):
        return pair_labels(registry, load_cohort(registry, organs), organs).test[0]

    def test_classes_follow_the_order_of_the_task(self, registry, organs, pair):
        stored = registry.read(pair.label).array
        assert np.array_equal(read_mask(registry, pair, organs), stored)
        swapped = replace(organs, labels=dict(reversed(organs.labels.items())))
        classes = read_mask(registry, pair, swapped)
        assert np.array_equal(classes[stored > 0], 6 - stored[stored > 0])

    def test_value_outside_the_list_is_named(self, registry, organs, pair):
        task = replace(organs, labels={"liver": 1})
        with pytest.raises(DataError, match=pair.label.volume_id) as caught:
            read_mask(registry, pair, task)
        assert caught.value.code == "DATA-06"

    def test_other_values_can_be_background(self, registry, organs, pair):
        task = replace(organs, labels={"liver": 1}, other_labels="background")
        assert set(np.unique(read_mask(registry, pair, task))) == {0, 1}
