"""Paper mode: what MRI-CORE's protocol does, and that its numbers are labelled."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from downstream.cohort import load_cohort
from downstream.evaluation.suite import evaluate
from downstream.segmentation.data import pair_labels, read_mask
from downstream.segmentation.paper import DIFFERENCES, paper_measure, paper_shots


@pytest.fixture
def pairs(registry, organs):
    return pair_labels(registry, load_cohort(registry, organs), organs)


@pytest.fixture
def shots(registry, organs, pairs):
    def make(k, draw=0, **options):
        def foreground(pair):
            return np.flatnonzero(read_mask(registry, pair, organs).any(axis=(1, 2))).tolist()

        return paper_shots(pairs.train, k, seed=0, draw=draw, foreground=foreground, **options)

    return make


class TestShots:
    def test_draws_share_patients_and_differ_in_slices(self, shots, pairs):
        first, second = shots(4), shots(4, draw=1)
        patients = [shot.pair.image.subject_id for shot in first]
        assert patients == [shot.pair.image.subject_id for shot in second]
        assert patients == sorted({p.image.subject_id for p in pairs.train})[:4]
        assert [shot.slices for shot in first] != [shot.slices for shot in second]

    def test_more_patients_than_there_are(self, shots, pairs):
        count = len({pair.image.subject_id for pair in pairs.train})
        with pytest.raises(DataError, match=f"of each of 99 patients, and {count} patients"):
            shots(99)
        assert len(shots(99, fewer=True)) == count


class TestMeasure:
    @pytest.fixture
    def masks(self):
        reference = np.zeros((4, 256, 256), np.uint8)
        reference[1:3, 40:80, 50:90] = 1
        estimate = np.roll(reference, 3, axis=2)
        return reference, estimate

    def test_a_false_mask_on_an_empty_slice_costs_nothing(self, masks):
        reference, estimate = masks
        worse = estimate.copy()
        worse[0] = 1
        found, same = (list(paper_measure(reference, e, ["organ"])) for e in (estimate, worse))
        assert found == same
        assert found[0].value == dice(reference == 1, estimate == 1)

    def test_slices_are_scored_alone_and_in_a_stack(self, masks):
        reference, estimate = masks
        estimate[2] = 0
        found = {m.metric: m.value for m in paper_measure(reference, estimate, ["organ"])}
        assert found["dice"] == dice(reference == 1, estimate == 1)
        assert found["dice_2d"] == pytest.approx(dice(reference[1] == 1, estimate[1] == 1) / 2)
        assert 0 < found["nsd"] < 1

    def test_nothing_is_said_of_a_volume_without_the_structure(self, masks):
        assert not list(paper_measure(np.zeros_like(masks[0]), masks[1], ["organ"]))


class TestSuite:
    def test_results_are_labelled(self, suite_config, organs, recipe):
        config = suite_config(
            tasks=(organs,),
            k=(2,),
            protocol="paper",
            baselines=("unet",),
            recipe=replace(recipe, shots_unit="slices"),
        )
        out = evaluate(config)
        content = json.loads((out / "results.json").read_text())
        assert not content["failed"]
        assert content["verdict"].startswith("Paper mode, not comparable.")
        assert "Dice" in content["verdict"]
        assert {c["metric"] for c in content["cells"]} == {"dice", "dice_2d", "nsd"}
        assert all(c["method"].endswith("(paper mode)") for c in content["cells"])
        page = (out / "report.html").read_text()
        assert "paper mode, not comparable" in page
        assert DIFFERENCES[2][:40] in page

    def test_needs_slices(self, suite_config):
        with pytest.raises(ConfigError, match="protocol paper labels slices"):
            suite_config(protocol="paper")
