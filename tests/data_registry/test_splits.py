from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_registry import Registry
from data_registry.splits import split_of

KEY = b"k" * 32


class TestSplitOf:
    def test_depends_on_key_and_subject_only(self) -> None:
        subjects = [f"P{i}" for i in range(200)]
        first = {s: split_of(KEY, s) for s in subjects}
        assert first == {s: split_of(KEY, s) for s in reversed(subjects)}
        assert first != {s: split_of(b"other" * 8, s) for s in subjects}

    def test_fractions(self) -> None:
        """Binomial: 5 standard deviations of a fraction of 0.7 among 10,000 are 0.023."""
        counts = Counter(split_of(KEY, f"P{i}") for i in range(10_000))
        for split, expected in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert counts[split] / 10_000 == pytest.approx(expected, abs=0.023)

    @pytest.mark.parametrize(
        ("subject", "split"), [("P0", "val"), ("P1", "train"), ("P4", "val"), ("P12", "test")]
    )
    def test_reference_values(self, subject: str, split: str) -> None:
        """First 16 digits of `printf split:P0 | openssl dgst -sha256 -hmac kkk...` (32 k), / 2^64.

        P0 bba4711e2f29335d = 0.733, P1 ab84a97a06e2e992 = 0.670, P4 caffdfc5205de7a7 = 0.793,
        P12 f619c1ae4b0ccf03 = 0.961.
        """
        assert split_of(KEY, subject) == split

    def test_all_to_one(self) -> None:
        assert {split_of(KEY, f"P{i}", (0, 0, 1)) for i in range(50)} == {"test"}

    @pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
    def test_impossible_fractions(self, fractions: tuple[float, float, float]) -> None:
        with pytest.raises(ValueError, match="sum to 1"):
            split_of(KEY, "P0", fractions)


class TestInRegistry:
    def test_labels_follow_their_subject(self, registry: Registry) -> None:
        leaks = registry.sql(
            "SELECT subject_id FROM volumes GROUP BY ALL HAVING count(DISTINCT split) > 1"
        )
        assert leaks.num_rows == 0
        assert registry.sql("SELECT * FROM splits").num_rows == 7

    def test_more_data_moves_nobody(self, tmp_path: Path, run_ingest, save) -> None:
        save(tmp_path / "a" / "patient01.nii.gz", "knee", 1)
        run_ingest(tmp_path / "reg", tmp_path / "a")
        registry = Registry.open(tmp_path / "reg")
        before = dict(registry.rows("SELECT subject_id, split FROM splits"))
        for subject in range(2, 8):
            save(tmp_path / "b" / f"patient{subject:02d}.nii.gz", "knee", subject)
        run_ingest(tmp_path / "reg", tmp_path / "a", tmp_path / "b")
        after = dict(registry.rows("SELECT subject_id, split FROM splits"))
        assert len(after) == 7
        assert before.items() <= after.items()

    def test_ledger_wins_over_new_fractions(self, tmp_path: Path, run_ingest, save) -> None:
        import dataclasses

        save(tmp_path / "a" / "patient01_T1.nii.gz", "knee", 1)
        registry = Registry.create(tmp_path / "reg", fractions=(1.0, 0.0, 0.0))
        run_ingest(registry.path, tmp_path / "a")
        registry = Registry.open(registry.path)
        registry.info = dataclasses.replace(registry.info, fractions=(0.0, 0.0, 1.0))
        registry.save_info()
        save(tmp_path / "a" / "patient01_T2.nii.gz", "knee", 1, "T2")
        save(tmp_path / "a" / "patient02_T1.nii.gz", "knee", 2)
        run_ingest(registry.path, tmp_path / "a")
        splits = dict(Registry.open(registry.path).rows("SELECT series_id, split FROM volumes"))
        assert sorted(splits.values()) == ["test", "train", "train"]
