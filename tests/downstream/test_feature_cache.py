from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from core_mri.weights.fingerprint import weights_fingerprint
from downstream.adapt import random_twin
from downstream.config import Running
from downstream.evaluation.suite import evaluate
from downstream.feature_cache import FeatureCache, remembering


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "embeddings", 1e6)


def entries(cache):
    return sorted(cache.folder.glob("*"))


class Counting:
    """Gives one tensor and counts how often."""

    def __init__(self, seed=0, size=100):
        self.calls, self.seed, self.size = 0, seed, size

    def __call__(self):
        self.calls += 1
        generator = torch.Generator().manual_seed(self.seed)
        return {"x": torch.randn(self.size, generator=generator)}


class TestEntries:
    def test_computed_once_and_bit_for_bit_the_same(self, cache):
        compute = Counting()
        first, second = (cache.tensors(compute, "a", 1) for _ in range(2))
        assert compute.calls == 1
        assert torch.equal(first["x"], second["x"])

    def test_another_key_is_another_entry(self, cache):
        compute = Counting()
        for key in (("a", 1), ("a", 2), ("b", 1), ("a", [1])):
            cache.tensors(compute, *key)
        assert compute.calls == 4

    def test_a_truncated_file_is_computed_again_and_replaced(self, cache, caplog):
        expected = cache.tensors(Counting(), "a")["x"]
        (path,) = entries(cache)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert torch.equal(cache.tensors(Counting(), "a")["x"], expected)
        assert "damaged" in caplog.text
        assert path.read_bytes() == whole

    def test_the_least_recently_used_go_and_the_limit_holds(self, cache):
        size = 400_000  # bytes of 100,000 float32: two entries fit
        computes = [Counting(seed, size // 4) for seed in range(3)]
        for place, compute in enumerate(computes[:2]):
            cache.tensors(compute, place)
            os.utime(entries(cache)[-1])
        for path in entries(cache):
            os.utime(path, (1, 1))
        cache.tensors(computes[0], 0)  # used again
        cache.tensors(computes[2], 2)
        assert sum(path.stat().st_size for path in entries(cache)) <= cache.limit_bytes
        cache.tensors(computes[0], 0)
        cache.tensors(computes[1], 1)
        assert [compute.calls for compute in computes] == [1, 2, 1]

    def test_what_is_larger_than_the_limit_is_not_kept(self, cache):
        compute = Counting(size=1_000_000)
        cache.tensors(compute, "a")
        cache.tensors(compute, "a")
        assert compute.calls == 2

    def test_a_folder_that_cannot_be_written_ends_nothing(self, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        cache = FeatureCache(tmp_path / "file" / "embeddings", 1e6)
        assert cache.tensors(Counting(), "a")["x"].shape == (100,)
        assert "not kept" in caplog.text


class TestRemembering:
    def test_answers_are_those_of_the_encoder(self, micro, cache):
        images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        known = remembering(micro, weights_fingerprint(micro), cache)
        with torch.no_grad():
            expected = micro(images), micro.intermediates(images, (0, 1))
            for _ in range(2):  # computed, then read
                found = known(images), known.intermediates(images, (0, 1))
                assert torch.equal(found[0].cls, expected[0].cls)
                assert torch.equal(found[0].patches, expected[0].patches)
                assert all(map(torch.equal, found[1], expected[1]))
        assert len(entries(cache)) == 2
        assert list(known.state_dict()) == list(micro.state_dict())

    def test_other_weights_other_entries(self, micro, cache):
        images = torch.rand(2, 1, 32, 32)
        for encoder in (micro, random_twin(micro, 1)):
            with torch.no_grad():
                found = remembering(encoder, weights_fingerprint(encoder), cache)(images)
                assert torch.equal(found.cls, encoder(images).cls)

    def test_no_cache_no_change(self, micro):
        assert remembering(micro, "", None) is micro


class TestSuite:
    def test_same_results_with_and_without_and_over_starts(
        self, suite_config, tmp_path, monkeypatch
    ):
        config = suite_config(k=(1,), per_class=(1,), draws=2)
        none = evaluate(suite_config(out=tmp_path / "none", k=(1,), per_class=(1,), draws=2),
                        running=Running(embeddings_gb=0))  # fmt: skip
        out = evaluate(config)
        assert not (none / "embeddings").exists()
        assert list((out / "embeddings").glob("*.safetensors"))
        assert (out / "results.json").read_bytes() == (none / "results.json").read_bytes()

        def forbidden(*arguments):
            raise AssertionError("encoded again")

        monkeypatch.setattr("downstream.classification.features.Tokens._encode", forbidden)
        other = replace(config.tasks[1], methods=("knn",))  # other cells of the same scans
        shared = replace(config, out=tmp_path / "later", tasks=(other,))
        later = evaluate(shared, running=Running(embeddings=out / "embeddings"))
        assert not json.loads((later / "results.json").read_text())["failed"]
