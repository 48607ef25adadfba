from __future__ import annotations

import copy
import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core_mri.errors import ConfigError, DataError, Interrupted, RunError
from core_mri.runs import Run
from core_mri.training.ema import update_ema
from core_mri.training.late import LateNumbers
from core_mri.training.layer_decay import layer_multiplier
from core_mri.training.loop import fit
from core_mri.training.probes import knn_probe, linear_probe
from core_mri.training.schedules import warmup_cosine


class TestWarmupCosine:
    def test_passes_through_its_three_values(self) -> None:
        values = warmup_cosine(0.0, 1.0, 0.1, warmup_steps=10, total_steps=50)
        assert values.shape == (50,)
        assert values[0] == 0.0
        assert values[10] == 1.0
        assert values[-1] == pytest.approx(0.1)
        assert (np.diff(values[:11]) > 0).all()
        assert (np.diff(values[10:]) < 0).all()

    def test_short_runs(self) -> None:
        assert warmup_cosine(0.0, 1.0, 0.5, 0, 1).tolist() == [1.0]
        assert len(warmup_cosine(0.0, 1.0, 0.5, 3, 3)) == 3
        with pytest.raises(ConfigError):
            warmup_cosine(0.0, 1.0, 0.5, 4, 3)


class TestLayerDecay:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vit.patch_embed.proj.weight", 0.2 * 0.9**13),  # DINOv2's ViT-B: layer 0 of 13
            ("vit.pos_embed", 0.9**13),
            ("vit.cls_token", 0.9**13),
            ("mask_token", 0.9**13),
            ("vit.blocks.0.attn.qkv.weight", 0.9**12),
            ("vit.blocks.11.mlp.fc2.bias", 0.9),
            ("vit.norm.weight", 1.0),
        ],
    )
    def test_falls_from_the_last_norm_to_the_patches(self, name: str, expected: float) -> None:
        found = layer_multiplier(name, depth=12, decay=0.9, patch_embed=0.2)
        assert found == pytest.approx(expected)


class TestLateNumbers:
    def test_are_fetched_once_and_finished_once(self) -> None:
        seen: list[dict[str, float]] = []
        numbers = LateNumbers(
            {"loss": torch.tensor(1.5), "norm": torch.tensor(2.0)},
            lambda found: (seen.append(dict(found)), {"twice": 2 * found["loss"]})[1],
        )
        assert seen == []
        assert dict(numbers) == {"loss": 1.5, "norm": 2.0, "twice": 3.0}
        assert numbers["loss"] == 1.5
        assert len(numbers) == 3
        assert seen == [{"loss": 1.5, "norm": 2.0}]


class TestEma:
    def test_moves_by_its_momentum_and_copies_buffers(self) -> None:
        student, teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        nn.init.constant_(student.weight, 2.0)
        student.running_mean.fill_(5.0)
        update_ema(teacher, student, 0.75)
        assert torch.allclose(teacher.weight, torch.full((3,), 1.25))
        assert torch.equal(teacher.running_mean, student.running_mean)

    def test_momentum_one_changes_nothing(self) -> None:
        student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
        before = copy.deepcopy(teacher.state_dict())
        update_ema(teacher, student, 1.0)
        assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


class TestProbes:
    @pytest.fixture
    def clusters(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        centers = 4 * torch.eye(3, 8)
        labels = torch.arange(3).repeat(20)
        return centers[labels] + torch.randn(60, 8, generator=generator), labels

    @pytest.mark.parametrize("probe", [knn_probe, linear_probe])
    def test_separates_what_is_separable(self, clusters: Any, probe: Any) -> None:
        x, y = clusters
        scores = probe(x[:45], y[:45], x[45:])
        assert scores.shape == (15, 3)
        assert torch.allclose(scores.sum(1), torch.ones(15), atol=1e-5)
        assert (scores.argmax(1) == y[45:]).float().mean() > 0.9

    @pytest.mark.parametrize("probe", [knn_probe, linear_probe])
    def test_order_of_training_rows_does_not_matter(self, clusters: Any, probe: Any) -> None:
        x, y = clusters
        order = torch.randperm(45, generator=torch.Generator().manual_seed(1))
        one, other = probe(x[:45], y[:45], x[45:]), probe(x[:45][order], y[:45][order], x[45:])
        assert torch.allclose(one, other, atol=1e-4)

    def test_linear_equals_scikit_learn(self, clusters: Any) -> None:
        # scikit-learn minimises C * sum of losses + |W|^2 / 2; ours is mean + l2 / 2 * |W|^2,
        # so C = 1 / (n * l2).
        linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")
        x, y = clusters
        z = (x - x.mean(0)) / x.std(0, correction=0)
        oracle = linear.LogisticRegression(C=1 / (60 * 0.05), tol=1e-10, max_iter=5000)
        expected = oracle.fit(z.double().numpy(), y.numpy()).predict_proba(z.double().numpy())
        ours = linear_probe(x, y, x, l2=0.05).numpy()
        assert np.abs(ours - expected).max() < 1e-4

    def test_bad_features_are_refused(self) -> None:
        x, y = torch.ones(2, 2), torch.tensor([0, 1])
        with pytest.raises(DataError, match="finite"):
            knn_probe(x * math.nan, y, x)
        with pytest.raises(DataError, match="one label per training row"):
            linear_probe(x, y[:1], x)


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    """Seed."""


class Walk:
    """A training whose every number depends on all the steps before."""

    def __init__(self, stop_at: int | None = None, bad_from: int = 10**9) -> None:
        self.weight = torch.tensor(0.5, dtype=torch.float64)
        self.stop_at, self.bad_from = stop_at, bad_from

    def step(self, index: int) -> Mapping[str, float]:
        if index == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        if index >= self.bad_from:
            return {"loss": math.nan}
        self.weight = 3.7 * self.weight * (1 - self.weight) + index * 1e-9
        return {"loss": self.weight.item()}

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]


def run_walk(folder: Path, walk: Walk, steps: int = 20, late: bool = False) -> list[str]:
    with Run.open(folder, Config()) as run:
        fit(
            walk.step, run=run, steps=steps, state=walk.state, restore=walk.restore,
            checkpoint_every=6, late=late,
        )  # fmt: skip
    return [line["loss_hex"] for line in run.metrics()]


class TestFit:
    def test_an_interrupted_run_continues_bit_by_bit(self, tmp_path: Path) -> None:
        whole = run_walk(tmp_path / "whole", Walk())
        with pytest.raises(Interrupted):
            run_walk(tmp_path / "cut", Walk(stop_at=8))
        assert run_walk(tmp_path / "cut", Walk()) == whole
        assert len(whole) == 20

    def test_late_numbers_are_the_same_numbers(self, tmp_path: Path) -> None:
        whole = run_walk(tmp_path / "whole", Walk())
        assert run_walk(tmp_path / "late", Walk(), late=True) == whole
        with pytest.raises(Interrupted):
            run_walk(tmp_path / "cut", Walk(stop_at=8), late=True)
        assert run_walk(tmp_path / "cut", Walk(), late=True) == whole

    def test_late_numbers_are_looked_at_after_the_next_step(self, tmp_path: Path) -> None:
        walk, events = Walk(), []

        def step(index: int) -> Mapping[str, float]:
            events.append(f"step {index}")
            loss = torch.tensor(1.0)
            return LateNumbers(
                {"loss": loss}, lambda _found: (events.append(f"look {index}"), {})[1]
            )

        with Run.open(tmp_path / "run", Config()) as run:
            fit(step, run=run, steps=4, state=walk.state, restore=walk.restore,
                checkpoint_every=4, late=True)  # fmt: skip
        assert events == [
            "step 0", "step 1", "look 0", "step 2", "look 1", "step 3", "look 2", "look 3",
        ]  # fmt: skip

    def test_late_divergence_stops_too(self, tmp_path: Path) -> None:
        with pytest.raises(RunError) as caught:
            run_walk(tmp_path / "run", Walk(bad_from=13), late=True)
        assert caught.value.code == "RUN-01"

    @pytest.mark.parametrize("late", [False, True])
    def test_enough_ends_a_run_like_its_last_step(self, tmp_path: Path, late: bool) -> None:
        walk = Walk()

        def run() -> list[str]:
            with Run.open(tmp_path / "run", Config()) as own:
                fit(walk.step, run=own, steps=20, state=walk.state, restore=walk.restore,
                    checkpoint_every=6, late=late, enough=lambda: walk.weight < 0.3)  # fmt: skip
            return [line["loss_hex"] for line in own.metrics()]

        first = run()
        assert 1 < len(first) < 20
        assert float.fromhex(first[-1]) == walk.weight
        ended, walk = walk, Walk(bad_from=0)
        assert run() == first
        assert walk.weight == ended.weight  # from the checkpoint after the last step

    def test_a_finished_run_does_nothing(self, tmp_path: Path) -> None:
        walk = Walk()
        first = run_walk(tmp_path / "run", walk)
        assert run_walk(tmp_path / "run", Walk(bad_from=0)) == first

    def test_divergence_stops_and_keeps_the_last_good_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(RunError) as caught:
            run_walk(tmp_path / "run", Walk(bad_from=13))
        assert caught.value.code == "RUN-01"
        assert Run(tmp_path / "run", main=True).load_checkpoint()[0] == 12  # type: ignore[index]
