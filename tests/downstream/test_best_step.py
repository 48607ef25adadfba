from __future__ import annotations

import torch

from downstream.best_step import BestStep


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


class TestBestStep:
    def test_the_highest_score_is_kept_as_a_copy(self):
        best, moving = BestStep(9, 0), weights(1.0)
        best.offer(1, moving, 0.5)
        moving["w"].zero_()
        best.offer(2, weights(2.0), 0.4)
        best.offer(3, weights(3.0), 0.5)
        assert (best.step, best.validated) == (1, 0.5)
        assert torch.equal(best.weights["w"], torch.ones(2))

    def test_later_numbers_decide_ties(self):
        best = BestStep(9, 0)
        best.offer(1, weights(1.0), 0.5, -2.0)
        best.offer(2, weights(2.0), 0.5, -1.0)
        assert best.step == 2

    def test_without_validation_the_last_step_counts(self):
        best = BestStep(9, 2)
        best.note(9, 0.1, None)
        assert (best.step, best.validated, best.enough, best.weights) == (9, -1.0, False, {})

    def test_enough_after_as_many_looks_without_gain(self):
        best = BestStep(9, 2)
        found = []
        for step, score in enumerate([0.3, None, 0.2, 0.1], start=1):
            best.note(step, 1.0, score)
            if score is not None:
                best.offer(step, weights(step), score)
            found.append(best.enough)
        assert found == [False, False, False, True]

    def test_state_and_back(self):
        best, other = BestStep(9, 2), BestStep(9, 2)
        best.offer(3, weights(1.0), 0.5, -1.0)
        best.note(3, 0.2, 0.5)
        other.restore(best.state())
        assert other.state() == best.state()
        assert other.curve == best.curve
