"""The order of water filling: balanced first parts, whatever the order of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from data_registry.planning.balance import effective_number, water_filling_order


def boxes(number: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    levels = [rng.integers(4, size=number).astype(str), rng.integers(5, size=number).astype(str)]
    return levels, rng.integers(1, 90, number), rng.permutation(number).astype(np.uint64)


class TestWaterFilling:
    def test_small_boxes_are_emptied_and_the_rest_is_even(self) -> None:
        """By hand: boxes of 100, 100 and 10 slices; 60 slices are 25 + 25 + 10."""
        box = np.array(["a"] * 100 + ["b"] * 100 + ["c"] * 10)
        ones = np.ones(len(box), dtype=np.int64)
        order = water_filling_order([box], ones, np.arange(len(box), dtype=np.uint64), 1.0)
        taken = box[order[:60]]
        assert [int((taken == name).sum()) for name in "abc"] == [25, 25, 10]

    def test_in_proportion(self) -> None:
        box = np.array(["a"] * 100 + ["b"] * 300)
        ones = np.ones(len(box), dtype=np.int64)
        order = water_filling_order([box], ones, np.arange(len(box), dtype=np.uint64), 0.0)
        taken = box[order[:80]]
        assert [int((taken == name).sum()) for name in "ab"] == [20, 60]

    def test_outer_boxes_come_first(self) -> None:
        """A region of one sequence gets as much as a region of four."""
        outer = np.array(["x"] * 400 + ["y"] * 100)
        inner = np.array([f"x{i % 4}" for i in range(400)] + ["y0"] * 100)
        ones = np.ones(500, dtype=np.int64)
        ties = np.arange(500, dtype=np.uint64)
        order = water_filling_order([outer, inner], ones, ties, 1.0)
        taken = outer[order[:160]]
        assert (taken == "x").sum() == (taken == "y").sum() == 80

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
    def test_order_of_rows_does_not_matter(self, seed: int, balance: float) -> None:
        levels, sizes, ties = boxes(300, seed)
        order = water_filling_order(levels, sizes, ties, balance)
        mixed = np.random.default_rng(seed + 100).permutation(300)
        again = water_filling_order(
            [level[mixed] for level in levels], sizes[mixed], ties[mixed], balance
        )
        assert (mixed[again] == order).all()
        assert sorted(order) == list(range(300))

    def test_long_series_are_not_disadvantaged(self) -> None:
        """One series of 1 or 100 slices for each of 2,000 patients: half of the taken are long."""
        sizes = np.where(np.arange(2000) % 2, 1, 100)
        patients = np.arange(2000).astype(str)
        ties = np.random.default_rng(0).permutation(2000).astype(np.uint64)
        order = water_filling_order([patients], sizes, ties, 1.0)
        assert 0.4 < (sizes[order[:500]] == 100).mean() < 0.6

    @pytest.mark.parametrize("seed", range(4))
    def test_more_balance_is_more_even(self, seed: int) -> None:
        levels, sizes, ties = boxes(300, seed)
        levels[0] = np.where(np.arange(300) < 240, "large", levels[0])
        found = []
        for balance in (0.0, 0.5, 1.0):
            order = water_filling_order(levels, sizes, ties, balance)
            part = order[: np.searchsorted(np.cumsum(sizes[order]), sizes.sum() // 4)]
            per_box = [int(sizes[part][levels[0][part] == b].sum()) for b in np.unique(levels[0])]
            found.append(effective_number(per_box))
        assert found[0] < found[1] < found[2]


def test_effective_number() -> None:
    assert effective_number([5, 5, 5, 5]) == pytest.approx(4)
    assert effective_number([7, 0]) == pytest.approx(1)
