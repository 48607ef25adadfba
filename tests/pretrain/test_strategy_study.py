"""What the tables of the studies in tests/benchmarks are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.judged import Ended, probed
from tests.benchmarks.strategy_study import differences


def test_neighbors_of_the_encoder_or_of_its_twin(tmp_path: Path) -> None:
    """As `pretrain` writes them: pixels, a third set of features, belong to neither."""
    cells = [
        {"task": "region", "method": method, "patient": "P1", "value": value, "twin": twin,
         "weights": weights}
        for weights, twin, method, value in (
            ("pretrained", False, "knn", 0.9), ("random", True, "knn", 0.7),
            ("pixels", False, "knn", 0.2), ("pretrained", False, "linear", 1.0),
        )
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    run = Ended("base", tmp_path, 0, "", "vit_micro_patch8")
    assert probed(run) == {"region, nearest neighbors": {"P1": 0.9}}
    assert probed(run, twin=True) == {"region, nearest neighbors": {"P1": 0.7}}


class TestDifferences:
    def scores(self, *shifts: float) -> dict:
        base = {"P1": 0.5, "P2": 0.7}
        found = {("base", seed): {"Dice": base} for seed in range(len(shifts))}
        for seed, shift in enumerate(shifts):
            own = {patient: value + shift for patient, value in base.items()}
            found["other", seed] = {"Dice": own | {"P3": 0.0}}  # base has no P3
        return found

    def test_interval_over_seeds(self) -> None:
        """Student's t: 4.303 for two degrees of freedom."""
        (row,) = differences(self.scores(0.1, 0.2, 0.3), first="base")
        assert row["difference"] == pytest.approx(0.2)
        assert row["high"] - row["difference"] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
        assert (row["seeds"], row["patients"], row["verdict"]) == (3, 2, "undecided")

    def test_verdict(self) -> None:
        for sign, verdict in ((1, "helps"), (-1, "harms")):
            (row,) = differences(self.scores(sign * 0.1, sign * 0.11, sign * 0.12), first="base")
            assert row["verdict"] == verdict

    def test_one_seed_decides_nothing(self) -> None:
        (row,) = differences(self.scores(0.4), first="base")
        assert row["verdict"] == "undecided"
