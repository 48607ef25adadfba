from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core_mri.errors import DataError
from downstream.cohort import (
    check_disjoint,
    fingerprint,
    load_cohort,
    read_image,
    shuffled,
    subjects,
)


class TestLoadCohort:
    def test_only_images_of_the_condition(self, registry, organs):
        cohort = load_cohort(registry, organs)
        assert {row.role for row in cohort.rows} == {"image"}
        assert {row.sequence for row in cohort.rows} == {"T1"}
        assert {row.split for row in cohort.test} == {"test"}

    def test_splits_share_no_patient(self, registry, sequences):
        cohort = load_cohort(registry, sequences)
        train, val, test = (set(subjects(rows)) for rows in (cohort.train, cohort.val, cohort.test))
        assert not train & val
        assert not train & test
        assert not val & test
        assert cohort.synthetic

    def test_validation_patients_take_the_place_of_the_test_patients(self, registry, organs):
        usual = load_cohort(registry, organs)
        choice = load_cohort(registry, replace(organs, test_split="val"))
        assert (choice.train, choice.val, choice.test) == (usual.train, (), usual.val)

    def test_nothing_found_is_said(self, registry, organs):
        with pytest.raises(DataError, match="region = 'moon'") as caught:
            load_cohort(registry, replace(organs, where="region = 'moon'"))
        assert caught.value.code == "DATA-09"


class TestCheckDisjoint:
    def test_a_patient_in_two_splits_is_named(self, registry, organs):
        rows = list(load_cohort(registry, organs).rows)
        other = "test" if rows[0].split != "test" else "train"
        rows.append(replace(rows[0], volume_id="another", split=other))
        with pytest.raises(DataError, match=rows[0].subject_id) as caught:
            check_disjoint(rows, "organs")
        assert caught.value.code == "DATA-08"


class TestShuffled:
    def test_the_given_order_does_not_matter(self):
        items = list("abcdefgh")
        assert shuffled(items, items, 0, 1) == shuffled(items[::-1], items[::-1], 0, 1)

    def test_the_salt_does(self):
        items = list("abcdefgh")
        assert len({tuple(shuffled(items, items, seed, 0)) for seed in range(5)}) > 1
        assert sorted(shuffled(items, items, 3)) == items


class TestFingerprint:
    def test_order_is_ignored_and_voxels_and_split_are_not(self, registry, organs):
        rows = load_cohort(registry, organs).rows
        assert fingerprint(rows) == fingerprint(rows[::-1])
        assert fingerprint(rows) != fingerprint([replace(rows[0], pixel_hash="x"), *rows[1:]])
        assert fingerprint(rows) != fingerprint([replace(rows[0], split="x"), *rows[1:]])


class TestReadImage:
    def test_window_of_the_volume_becomes_0_to_1(self, registry, organs):
        row = load_cohort(registry, organs).test[0]
        image = read_image(registry, row)
        assert image.shape == (row.num_slices, row.rows, row.columns)
        assert image.dtype == np.float32
        assert image.min() == 0
        assert image.max() == 1
