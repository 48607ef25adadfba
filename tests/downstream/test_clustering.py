"""Clusters of frozen features: pixels, Dice tables against a plain loop, matching, the suite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from core_mri.errors import ConfigError, DataError
from core_mri.metrics import dice
from core_mri.models.encoder import Encoder
from downstream.clustering import clusters as clusters_module
from downstream.clustering.clusters import assign, fit, patch_features
from downstream.clustering.matching import choose, dice_table, matched, oracle
from downstream.config import SuiteConfig, Task
from downstream.evaluation.suite import evaluate


@pytest.fixture
def labelled() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=(4, 9, 7)).astype(np.uint8)
    classes[1] = 0
    classes[2][classes[2] == 2] = 0
    return rng.integers(5, size=(4, 9, 7)).astype(np.uint8), classes


class TestClusters:
    def test_features_that_differ_come_apart(self) -> None:
        directions = torch.eye(3)[torch.randint(3, (2, 6, 6), generator=torch.manual_seed(0))]
        centers = fit([directions], 3, seed=0)
        found = assign(directions, centers, 6, 6)
        truth = directions.argmax(-1).numpy()
        pairs = {(int(a), int(b)) for a, b in zip(found.ravel(), truth.ravel(), strict=True)}
        assert len(pairs) == 3

    def test_same_seed_same_centers(self) -> None:
        features = [torch.randn(3, 8, 8, 4, generator=torch.manual_seed(0))]
        assert torch.equal(fit(features, 5, seed=3), fit(features, 5, seed=3))
        assert not torch.equal(fit(features, 5, seed=3), fit(features, 5, seed=4))

    def test_a_sample_of_many_patches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clusters_module, "MAX_PATCHES", 20)
        features = [torch.full((1, 5, 5, 2), float(i)) for i in range(4)]
        table = clusters_module._sample(features, np.random.default_rng(0))
        assert table.shape == (20, 2)
        assert set(table.ravel()) == {0.0, 1.0, 2.0, 3.0}

    def test_too_few_patches(self) -> None:
        with pytest.raises(DataError, match="4 patches do not make 8 clusters"):
            fit([torch.randn(1, 2, 2, 3)], 8, seed=0)

    def test_interpolated_closeness_is_that_of_interpolated_features(self) -> None:
        generator = torch.manual_seed(0)
        features = torch.randn(2, 4, 4, 6, generator=generator)
        centers = torch.randn(7, 6, generator=generator)
        pixels = torch.nn.functional.interpolate(
            features.permute(0, 3, 1, 2).double(), (20, 20), mode="bilinear"
        )[:, :, 3:-3]
        distances = (pixels[:, None] - centers.double()[:, :, None, None]).square().sum(2)
        assert np.array_equal(assign(features, centers, 14, 20), distances.argmin(1).numpy())

    def test_features_have_length_one_and_batches_do_not_matter(
        self, micro: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = np.random.default_rng(0).random((5, 20, 32), dtype=np.float32)
        found = patch_features(micro, image, 32)
        assert found.shape == (5, 4, 4, 32)
        assert torch.allclose(found.norm(dim=-1), torch.ones(5, 4, 4))
        monkeypatch.setattr(clusters_module, "BATCH", 2)
        assert torch.allclose(patch_features(micro, image, 32), found, atol=1e-5)


class TestMatching:
    def test_dice_of_every_pair(self, labelled: tuple[np.ndarray, np.ndarray]) -> None:
        clusters, classes = labelled
        table = dice_table(clusters, classes, 5, 3)
        assert table.shape == (4, 5, 2)
        for s, c, structure in np.ndindex(4, 5, 2):
            reference = classes[s] == structure + 1
            expected = dice(reference, clusters[s] == c) if reference.any() else np.nan
            assert table[s, c, structure] == pytest.approx(expected, nan_ok=True)

    def test_oracle_bounds_any_choice(self, labelled: tuple[np.ndarray, np.ndarray]) -> None:
        table = dice_table(*labelled, 5, 3)
        best = oracle(table)
        assert best[0] == pytest.approx(table[[0, 2, 3], :, 0].max(1).mean())
        assert (matched(table, choose(table)) <= best).all()
        assert (matched(table, choose(table)) >= matched(table, np.array([0, 0]))).all()

    def test_names_of_clusters_do_not_matter(self, labelled: tuple[np.ndarray, np.ndarray]) -> None:
        clusters, classes = labelled
        order = np.array([3, 1, 4, 0, 2], np.uint8)
        a, b = dice_table(clusters, classes, 5, 3), dice_table(order[clusters], classes, 5, 3)
        assert np.allclose(oracle(a), oracle(b))
        assert np.array_equal(order[choose(a)], choose(b))

    def test_clusters_that_are_the_structures(self) -> None:
        classes = np.array([[[0, 1, 2]], [[1, 1, 0]]], np.uint8)
        table = dice_table(np.array([2, 0, 1], np.uint8)[classes], classes, 3, 3)
        assert choose(table).tolist() == [0, 1]
        assert matched(table, choose(table)).tolist() == [1.0, 1.0]


@pytest.fixture
def clustering(organs: Task) -> Task:
    return Task(name="organs-clusters", kind="clustering", where=organs.where, labels=organs.labels)


class TestSuite:
    def test_scores_report_and_reuse(self, suite_config, clustering: Task) -> None:
        config: SuiteConfig = suite_config(tasks=(clustering,), clusters=(4, 128), draws=2)
        out = evaluate(config)
        results = json.loads((out / "results.json").read_text())
        assert not results["failed"]
        cells = results["cells"]
        # 6 slices of 4 x 4 patches a patient: too few for 128 clusters of one patient alone
        methods = {(cell["method"], cell["k"]) for cell in cells}
        assert methods == {
            *(("patient-oracle", 4), ("set-oracle", 4), ("set-matched", 4)),
            *(("set-oracle", 128), ("set-matched", 128)),
        }
        assert {cell["metric"] for cell in cells} == {"dice_2d"}
        by_key = {
            tuple(
                cell[name] for name in ("weights", "method", "k", "draw", "patient", "structure")
            ): (cell["value"])
            for cell in cells
        }
        for (weights, method, *rest), value in by_key.items():
            if method == "set-matched":
                assert 0 <= value <= by_key[(weights, "set-oracle", *rest)]
        summary = {
            (row["weights"], row["method"], row["k"], row["metric"]) for row in results["summary"]
        }
        assert ("micro", "set-matched", 4, "dice_2d") in summary
        assert ("micro", "set-matched", 4, "dice_2d:liver") in summary
        assert "clusters" in results["verdict"]
        page = (out / "report.html").read_text()
        assert "Dice per slice" in page
        before = (out / "results.json").read_bytes()
        assert (evaluate(config) / "results.json").read_bytes() == before

    def test_test_labels_choose_nothing(
        self, suite_config, clustering: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Matched clusters are chosen before any test volume is opened."""
        from downstream.clustering import scores

        opened: list[str] = []
        original, chooser = scores.read_mask, scores.choose

        def read_mask(registry, pair, task):
            opened.append(pair.image.split)
            return original(registry, pair, task)

        def chosen(table):
            opened.append("choice")
            return chooser(table)

        monkeypatch.setattr(scores, "read_mask", read_mask)
        monkeypatch.setattr(scores, "choose", chosen)
        evaluate(suite_config(tasks=(clustering,), clusters=(4,), draws=1))
        first = opened[: opened.index("choice")]
        assert set(first) == {"train"}
        assert "test" in opened

    def test_finetune_refuses(self, finetune_config, clustering: Task) -> None:
        with pytest.raises(ConfigError, match="core-mri evaluate"):
            finetune_config(task=clustering)

    def test_counts_of_clusters(self, suite_config) -> None:
        with pytest.raises(ConfigError, match="between 2 and 256"):
            suite_config(clusters=(1, 300))
